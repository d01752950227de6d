"""A model on this machine: read, summed up, validated; and broken in each way that copies break."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lab.model import (
    make_gguf,
    make_model,
    remove_tensor,
    reshape_tensor,
    spoil_tokenizer,
    truncate,
)
from lab.model_weights import read_tensors
from rules.errors import InvalidRequestError
from rules.model_artefact import doubts, faults
from rules.model_facts import ModelFacts, TokenizerFacts
from tasks.model_files import ModelArtefactError, digest, read_model, tensor_checksums, validated

PIPELINE = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
#: Files are made once a module; a test that breaks one works on a copy.
QUICKLY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def by_coreutils(directory: Path) -> str:
    argv = ("bash", "-c", f"set -o pipefail; {PIPELINE}")
    return subprocess.run(argv, cwd=directory, check=True, capture_output=True, text=True).stdout[:64]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in one file, one in three, one in a GGUF."""
    root = tmp_path_factory.mktemp("models")
    make_model(root / "one")
    make_model(root / "three", shards=3)
    make_gguf(root / "gguf" / "m.gguf")
    return root


@pytest.fixture
def one(models: Path, tmp_path: Path) -> Path:
    return copied(models / "one", tmp_path)


@pytest.fixture
def three(models: Path, tmp_path: Path) -> Path:
    return copied(models / "three", tmp_path)


@pytest.fixture
def gguf(models: Path, tmp_path: Path) -> Path:
    return copied(models / "gguf", tmp_path)


def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / model.name))


def rewrite(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# --- what it holds ---------------------------------------------------------------------------------


def test_a_model_in_one_file_is_read(one):
    facts = read_model(one)
    assert (faults(facts), doubts(facts)) == ((), ())
    assert facts.format == "safetensors"
    assert facts.architectures == ("LlamaForCausalLM",)
    assert (facts.model_type, facts.vocab_size, facts.hidden_size, facts.layers) == ("llama", 512, 64, 2)
    held = read_tensors(one / "model.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in facts.tensors.items()} == {
        name: (dtype, tuple(shape)) for name, (dtype, shape, _) in held.items()
    }
    assert facts.weights_bytes == sum(len(data) for _, _, data in held.values())
    assert facts.size_bytes == sum(path.stat().st_size for path in one.iterdir())
    assert (facts.index, facts.shards, facts.sha256) == (None, ("model.safetensors",), None)
    assert (facts.eos_ids, facts.bos_ids, facts.quantization) == ((1,), (0,), "")


def test_a_model_in_several_files_is_read(three):
    facts = read_model(three)
    assert faults(facts) == ()
    assert facts.shards == tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
    assert facts.index == {name: tensor.shard for name, tensor in facts.tensors.items()}


def test_facts_survive_json(three, gguf):
    for model in (three, gguf):
        facts = read_model(model)
        assert ModelFacts.model_validate_json(facts.model_dump_json()) == facts


def test_a_gguf_is_read_with_its_tokenizer(gguf):
    facts = read_model(gguf)
    assert (faults(facts), doubts(facts)) == ((), ())
    assert facts.architectures == ("LlamaForCausalLM",)
    assert (facts.model_type, facts.vocab_size, facts.hidden_size, facts.layers) == ("llama", 512, 64, 2)
    assert facts.tensors["token_embd.weight"].shape == (512, 64)
    assert facts.tensors["blk.1.ffn_down.weight"].shape == (64, 128)
    assert facts.weights_bytes == 4 * 139_584
    assert facts.tokenizer is not None
    assert (facts.tokenizer.kind, facts.tokenizer.vocab_size) == ("gguf", 512)
    assert facts.tokenizer.meanings == {0: "<s>", 1: "</s>"}


def test_what_a_server_reads_only_when_it_starts_is_summed_up(one):
    (one / "chat_template.jinja").write_text("{{ messages }}")
    (one / "README.md").write_text("about")
    (one / "trainer_state.json").write_text("{}")
    assert sorted(read_model(one).files) == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_model_of_many_gigabytes_is_read_by_its_header_alone(one):
    """32 GiB of holes: reading them would take half a minute."""
    shape, size = [1 << 22, 1 << 12], 32 << 30
    header = {
        "__metadata__": {"format": "pt"},
        "x.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]},
    }
    encoded = json.dumps(header).encode()
    big = one / "model.safetensors"
    big.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    os.truncate(big, 8 + len(encoded) + size)
    began = time.monotonic()
    facts = read_model(one)
    assert time.monotonic() - began < 5
    assert facts.weights_bytes == size
    assert facts.tensors["x.weight"].shape == tuple(shape)


def test_the_same_weights_in_another_vendors_naming_are_passed_over(three):
    shutil.copy(three / "model-00001-of-00003.safetensors", three / "consolidated.safetensors")
    facts = read_model(three)
    assert faults(facts) == ()
    assert "consolidated.safetensors" not in facts.shards


def test_a_tensor_in_two_files_is_told(one):
    shutil.copy(one / "model.safetensors", one / "old.safetensors")
    facts = read_model(one)
    assert facts.repeated["lm_head.weight"] == ("model.safetensors", "old.safetensors")
    assert any("is in model.safetensors and old.safetensors" in fault for fault in faults(facts))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization_config": {"quant_method": "AWQ"}}, "awq"),
        ({"compression_config": {"format": "pack-quantized"}}, "pack-quantized"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
    ],
)
def test_a_quantization_is_read(one, config, expected):
    rewrite(one / "config.json", lambda content: content.update(config))
    assert read_model(one).quantization == expected


def test_a_quantization_in_a_file_of_its_own_is_read(one):
    (one / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert read_model(one).quantization == "modelopt nvfp4"


# --- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "original/consolidated.00.pth", "optimizer.pt", "a.PKL"]
)
def test_pickles_are_refused_because_they_are_code(one, name):
    (one / name).parent.mkdir(exist_ok=True)
    (one / name).write_bytes(b"\x80\x02")
    with pytest.raises(ModelArtefactError, match=rf"{name}: loading a pickle runs .* Convert .* safetensors"):
        read_model(one)


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def both_kinds(model: Path) -> None:
    (model / "m.gguf").write_bytes(b"GGUF")


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def config_is_a_list(model: Path) -> None:
    (model / "config.json").write_text("[1]")


def config_nests_for_ever(model: Path) -> None:
    (model / "config.json").write_text("[" * 200_000)


def tokenizer_config_is_cut(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"eos_token": ')


def index_says_nothing(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')


def trailing_data(model: Path) -> None:
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        (no_weights, "neither *.safetensors nor a *.gguf"),
        (both_kinds, "both safetensors and GGUF"),
        (no_config, "config.json is not there"),
        (config_is_a_list, "no JSON object but a list"),
        (config_nests_for_ever, "config.json is no JSON"),
        (tokenizer_config_is_cut, "tokenizer_config.json is no JSON"),
        (index_says_nothing, "whose weight_map says"),
        (trailing_data, "model.safetensors is no whole safetensors file"),
        (truncate, "model.safetensors is no whole safetensors file"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_touched(one, breaks, expected):
    breaks(one)
    with pytest.raises(ModelArtefactError) as refused:
        read_model(one)
    assert expected in str(refused.value)
    assert "Nothing was touched" in str(refused.value)
    assert isinstance(refused.value, InvalidRequestError)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelArtefactError, match="no directory on the worker's host"):
        read_model(tmp_path / "none")


def test_several_ggufs_and_parts_of_one_are_refused(gguf):
    from gguf import GGUFWriter  # noqa: PLC0415  # it takes a second

    writer = GGUFWriter(gguf / "m.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelArtefactError, match="one of 2 parts"):
        read_model(gguf)
    shutil.copy(gguf / "m.gguf", gguf / "n.gguf")
    with pytest.raises(ModelArtefactError, match=r"several GGUF files \(m.gguf, n.gguf\)"):
        read_model(gguf)


@pytest.fixture(scope="module")
def cut_here(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the models whose files are cut, each mended before the next."""
    return Path(shutil.copytree(models, tmp_path_factory.mktemp("cut") / "models"))


def cut(path: Path, at: int, whole: bytes) -> Iterator[None]:
    path.write_bytes(whole[:at])
    yield
    path.write_bytes(whole)


@QUICKLY
@given(data=st.data())
def test_any_truncation_of_a_safetensors_file_is_found(models, cut_here, data):
    model = cut_here / data.draw(st.sampled_from(["one", "three"]))
    path = data.draw(st.sampled_from(sorted(model.glob("*.safetensors"))))
    whole = (models / model.name / path.name).read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    at = data.draw(st.integers(0, header) | st.integers(0, len(whole) - 1))
    for _ in cut(path, at, whole):
        with pytest.raises(ModelArtefactError, match="no whole safetensors file"):
            read_model(model)
    assert faults(read_model(model)) == ()


@settings(QUICKLY, max_examples=30)
@given(data=st.data())
def test_any_truncation_of_a_gguf_is_found(models, cut_here, data):
    model = cut_here / "gguf"
    whole = (models / "gguf" / "m.gguf").read_bytes()
    at = data.draw(st.integers(0, 9000) | st.integers(0, len(whole) - 1))
    for _ in cut(model / "m.gguf", at, whole):
        with pytest.raises(ModelArtefactError, match="no whole GGUF file"):
            read_model(model)


@QUICKLY
@given(data=st.data())
def test_any_truncation_of_a_configuration_or_tokenizer_is_found(models, cut_here, data):
    model = cut_here / "three"
    path = data.draw(st.sampled_from(sorted(model.glob("*.json"))))
    whole = (models / "three" / path.name).read_bytes()
    at = data.draw(st.integers(0, len(whole.rstrip()) - 1))
    for _ in cut(path, at, whole):
        with pytest.raises(ModelArtefactError, match=path.name):
            validated(model, digest(model))


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        (remove_tensor, "model.layers.0.mlp.up_proj.weight is missing"),
        (reshape_tensor, "[72, 128]: 72 where hidden_size is 64"),
    ],
)
def test_a_sound_file_with_the_wrong_tensors_is_found(three, breaks, expected):
    breaks(three)
    assert any(expected in fault for fault in faults(read_model(three)))


# --- tokenizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("missing", "No tokenizer"),
        ("not_json", "tokenizer.json is broken"),
        ("ids_beyond", "the embedding has 512 rows"),
        ("no_eos", "eos_token '</s>', which the tokenizer tokenizer.json does not have"),
    ],
)
def test_a_spoilt_tokenizer_is_found(one, how, expected):
    spoil_tokenizer(one, how)
    assert any(expected in fault for fault in faults(read_model(one)))


def test_an_id_that_changes_when_it_is_loaded_is_found(one):
    """The library gives an added token that leaves a gap the next free id, and says nothing."""

    def leave_a_gap(content: dict) -> None:
        content["added_tokens"].append({**content["added_tokens"][0], "id": 1399, "content": "<|gap|>"})

    rewrite(one / "tokenizer.json", leave_a_gap)
    found = faults(read_model(one))
    assert any("'<|gap|>' has id 1399 in the file, and 399 once it is loaded" in fault for fault in found)
    assert any("tokens up to id 1399, the embedding has 512 rows" in fault for fault in found)


def test_another_tokenizer_is_another_to_the_byte(one):
    before = tokenizer_of(one)
    spoil_tokenizer(one, "other")
    after = tokenizer_of(one)
    assert before.sha256 != after.sha256
    assert before == after.model_copy(update={"sha256": before.sha256})


def tokenizer_of(model: Path) -> TokenizerFacts:
    found = read_model(model).tokenizer
    assert found is not None
    return found


def test_an_end_that_means_another_token_is_found(one):
    rewrite(one / "generation_config.json", lambda content: content.update(eos_token_id=3))
    rewrite(one / "config.json", lambda content: content.update(eos_token_id=[3]))
    (fault,) = faults(read_model(one))
    assert "eos_token_id is 3 ('<|im_end|>') by the configurations, but tokenizer_config.json says" in fault


def test_tokens_may_be_written_as_objects_and_in_the_older_file(one):
    def edit(content: dict) -> None:
        del content["bos_token"]
        content["eos_token"] = {"content": "</s>", "special": True}

    rewrite(one / "tokenizer_config.json", edit)
    found = tokenizer_of(one)
    assert (found.eos, found.bos) == ("</s>", "<s>")
    assert found.special_ids == {"<s>": 0, "</s>": 1, "<|im_start|>": 2, "<|im_end|>": 3}


def test_a_vocabulary_and_merges_are_a_tokenizer(one):
    """As the older models of byte pairs have it: the added tokens stand beside."""
    Tokenizer.from_file(str(one / "tokenizer.json")).model.save(str(one))
    (one / "tokenizer.json").unlink()
    found = tokenizer_of(one)
    assert (found.kind, found.vocab_size, found.fault) == ("vocab.json", 399, "")
    assert found.meanings == {0: "<s>", 1: "</s>"}
    assert faults(read_model(one)) == ()
    (one / "added_tokens.json").write_text('{"<|more|>": 600}')
    assert any("tokens up to id 600" in fault for fault in faults(read_model(one)))
    (one / "merges.txt").unlink()
    assert "merges.txt is not there" in tokenizer_of(one).fault


def sentencepiece(*pieces: tuple[str, int]) -> bytes:
    """Return a sentencepiece model as its protobuf: in each piece its text, a score, and its type."""
    written = b""
    for text, kind in pieces:
        encoded = text.encode()
        piece = b"\x0a" + bytes([len(encoded)]) + encoded + b"\x15" + struct.pack("<f", -1.5)
        piece += b"\x18" + bytes([kind]) if kind != 1 else b""
        written += b"\x0a" + bytes([len(piece)]) + piece
    trainer = b"\x18\x80\x02"
    return written + b"\x12" + bytes([len(trainer)]) + trainer


def test_the_pieces_of_a_sentencepiece_model_are_read(one):
    pieces = [("<s>", 3), ("</s>", 3), *((f"▁{n}", 1) for n in range(300))]
    (one / "tokenizer.json").unlink()
    rewrite(one / "tokenizer_config.json", lambda content: content.pop("added_tokens_decoder"))
    (one / "tokenizer.model").write_bytes(sentencepiece(*pieces))
    found = tokenizer_of(one)
    assert (found.kind, found.vocab_size) == ("tokenizer.model", 302)
    assert found.special_ids == {"<s>": 0, "</s>": 1}
    assert faults(read_model(one)) == ()
    for lost in (1, 30):
        (one / "tokenizer.model").write_bytes(sentencepiece(*pieces)[:-lost])
        assert "no sentencepiece model" in tokenizer_of(one).fault
    (one / "tokenizer.model").write_bytes(b"")
    assert "no pieces" in tokenizer_of(one).fault


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.model", b"IQ== 0\nIg== 1\n"), ("tekken.json", b"{}"), ("q.tiktoken", b"")],
)
def test_a_kind_that_is_not_read_is_said(one, name, content):
    (one / "tokenizer.json").unlink()
    (one / name).write_bytes(content)
    facts = read_model(one)
    assert faults(facts) == ()
    assert doubts(facts) == (f"{name} is a kind of tokenizer that was not read.",)


# --- digest ----------------------------------------------------------------------------------------


def test_the_digest_is_that_of_coreutils(models):
    for model in models.iterdir():
        assert digest(model) == by_coreutils(model)


NAMES = st.lists(
    st.text("aB.-_ /é0~", min_size=1, max_size=6).filter(
        lambda name: all(part not in {"", ".", ".."} for part in name.split("/"))
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(QUICKLY, max_examples=40)
@given(names=NAMES, raw=st.booleans())
def test_names_of_any_kind_are_in_the_order_of_coreutils(tmp_path_factory, names, raw):
    directory = tmp_path_factory.mktemp("names")
    for name in [*names, *([os.fsdecode(b"\xff\xfe")] if raw else [])]:
        path = directory / name
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, errors="surrogateescape")
    assert digest(directory) == by_coreutils(directory)


def test_names_are_in_the_order_of_their_bytes(tmp_path):
    """Of what is no UTF-8, text and bytes are ordered otherwise."""
    for name in (b"\xff", "\uff01".encode(), "\U0001f600".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    assert digest(tmp_path) == by_coreutils(tmp_path)


def test_the_digest_tells_content_names_and_places_apart(tmp_path):
    seen = set()
    for place, content in [("a", "1"), ("a", "2"), ("b", "1"), ("d/a", "1")]:
        directory = tmp_path / str(len(seen))
        (directory / place).parent.mkdir(parents=True)
        (directory / place).write_text(content)
        seen.add(digest(directory))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["line\nbreak", "back\\slash", "carriage\rreturn", "d\n/x"])
def test_a_name_that_sha256sum_writes_otherwise_is_refused(one, name):
    (one / name).parent.mkdir(exist_ok=True)
    (one / name).write_text("x")
    with pytest.raises(ModelArtefactError, match="a line break or a backslash"):
        digest(one)


@pytest.mark.parametrize("target", ["../outside", "/etc/hostname", "nowhere", "sub", "."])
def test_a_link_out_of_the_directory_is_refused(one, target):
    (one.parent / "outside").write_text("x")
    (one / "sub").mkdir()
    (one / "sub" / "file").write_text("x")
    (one / "link").symlink_to(target)
    if target in {"sub", "."}:
        assert digest(one) == by_coreutils(one)
        return
    with pytest.raises(ModelArtefactError, match=f"is a link to {target}, which leads outside or nowhere"):
        digest(one)


def test_a_link_to_the_directory_itself_is_no_other_directory(one):
    (one.parent / "current").symlink_to(one.name)
    assert digest(one.parent / "current") == digest(one)


def test_an_absolute_link_inside_is_refused_because_a_copy_would_lead_back(one):
    (one / "link").symlink_to(one / "config.json")
    with pytest.raises(ModelArtefactError, match="leads outside"):
        digest(one)


def test_what_is_no_file_is_refused(one):
    os.mkfifo(one / "pipe")
    for look in (digest, read_model):
        with pytest.raises(ModelArtefactError, match="pipe is no file"):
            look(one)


def test_nothing_has_no_digest(tmp_path):
    with pytest.raises(ModelArtefactError, match="holds no file"):
        digest(tmp_path)


# --- checksums of tensors --------------------------------------------------------------------------


def test_checksums_are_of_the_raw_bytes_of_each_tensor(three):
    expected = {
        name: hashlib.sha256(data).hexdigest()[:16]
        for path in three.glob("*.safetensors")
        for name, (_, _, data) in read_tensors(path).items()
    }
    assert tensor_checksums(three) == expected
    some = sorted(expected)[:2]
    assert tensor_checksums(three, some) == {name: expected[name] for name in some}


def test_a_tensor_larger_than_what_is_read_at_once_is_summed_up_whole(tmp_path):
    data = bytes(range(256)) * (5 << 12)
    header = json.dumps({"x": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert tensor_checksums(tmp_path) == {"x": hashlib.sha256(data).hexdigest()[:16]}


def test_a_tensor_that_is_not_there_has_no_checksum(one):
    with pytest.raises(ModelArtefactError, match="no tensor ghost"):
        tensor_checksums(one, ["lm_head.weight", "ghost"])


# --- may it be deployed ----------------------------------------------------------------------------


def test_a_whole_model_with_its_digest_may_be_deployed(models):
    for model in models.iterdir():
        sha256 = by_coreutils(model)
        facts = validated(model, sha256)
        assert facts.sha256 == sha256
        assert facts == read_model(model).model_copy(update={"sha256": sha256})


def test_a_sound_model_that_is_not_the_declared_one_is_refused(one):
    with pytest.raises(ModelArtefactError, match=rf"Its digest is {digest(one)}, declared was {'0' * 64}"):
        validated(one, "0" * 64)


def test_all_that_is_wrong_is_listed_at_once(three):
    reshape_tensor(three, "model.layers.0.mlp.up_proj.weight")
    remove_tensor(three, "model.layers.1.input_layernorm.weight")
    spoil_tokenizer(three, "no_eos")
    with pytest.raises(ModelArtefactError) as refused:
        validated(three, "0" * 64)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"The model in {three} cannot be deployed; nothing was touched:"
    assert len(lines) == 5
    for expected in ("up_proj.weight in", "input_layernorm.weight is missing", "eos_token", "Its digest is"):
        assert any(expected in line for line in lines)


def test_a_model_that_cannot_be_read_is_refused_with_its_digest_too(one):
    truncate(one)
    with pytest.raises(ModelArtefactError, match=r"(?s)no whole safetensors file.*Its digest is"):
        validated(one, "0" * 64)


def test_a_right_digest_does_not_excuse_a_link_that_leads_out(one):
    (one.parent / "outside").write_text("x")
    (one / "link").symlink_to("../outside")
    with pytest.raises(ModelArtefactError, match="leads outside") as refused:
        validated(one, by_coreutils(one))
    assert "Its digest is" not in str(refused.value)


def test_a_directory_that_is_not_there_cannot_be_deployed(tmp_path):
    with pytest.raises(ModelArtefactError, match="no directory"):
        validated(tmp_path / "none", "0" * 64)
