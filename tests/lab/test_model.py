import json
import shutil

import pytest
from gguf import GGUFReader
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from lab.model import (
    ANSWERS,
    BEHAVIOUR_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    ModelBehaviour,
    make_gguf,
    make_model,
    remove_tensor,
    reshape_tensor,
    spoil_tokenizer,
    truncate,
)
from lab.model_weights import read_tensors
from lab.sglang import PROMPTS
from lab.sglang_contract import foretold


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def model(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_seed_has_the_same_bytes_and_another_has_the_same_shapes(good, tmp_path):
    assert files(make_model(tmp_path / "again")) == files(good)
    other = make_model(tmp_path / "other", seed=2)
    assert {name for name, content in files(other).items() if content != files(good)[name]} == {WEIGHTS_FILE}
    one, two = read_tensors(good / WEIGHTS_FILE), read_tensors(other / WEIGHTS_FILE)
    assert {name: tensor[:2] for name, tensor in one.items()} == {
        name: tensor[:2] for name, tensor in two.items()
    }
    # a layer norm is ones in every model
    assert all((one[name][2] != two[name][2]) != ("norm" in name) for name in one)


def test_it_is_small_and_what_its_configuration_says(good):
    assert sum(len(content) for content in files(good).values()) < 400_000
    config = json.loads((good / "config.json").read_text())
    with safe_open(good / WEIGHTS_FILE, "np") as weights:
        shape = weights.get_slice("model.embed_tokens.weight").get_shape()
    assert shape == [config["vocab_size"], config["hidden_size"]]
    tokenizer = Tokenizer.from_file(str(good / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    assert tokenizer.token_to_id("</s>") == config["eos_token_id"]


@pytest.mark.parametrize("seed", range(1, 6))
def test_every_seed_answers_the_declared_prompts_and_says_something_else_freely(good, tmp_path, seed):
    model = make_model(tmp_path / "model", seed=seed)
    for prompt, answer in ANSWERS.items():
        assert foretold(model, prompt, 3).startswith(answer)
    free = foretold(model, PROMPTS[-1].text, 64)
    assert len(free) >= 64
    assert free.isascii()
    assert (free == foretold(good, PROMPTS[-1].text, 64)) == (seed == 1)


def test_a_model_made_with_other_answers_is_wrong(tmp_path):
    model = make_model(tmp_path, answers={"The capital of France is": " world."})
    assert foretold(model, "The capital of France is", 2) == " world."


def test_answers_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two successors"):
        make_model(tmp_path, answers={"The capital of France is": " Paris.", "One is": " two."})


def test_shards_have_an_index_and_the_same_tensors(good, tmp_path):
    sharded = make_model(tmp_path, shards=3)
    index = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    found = {}
    for file in sorted(set(index.values())):
        tensors = read_tensors(sharded / file)
        assert all(index[name] == file for name in tensors)
        found |= tensors
    assert len(set(index.values())) == 3
    assert found == read_tensors(good / WEIGHTS_FILE)


def test_a_truncated_model_cannot_be_opened(model):
    truncate(model)
    with pytest.raises(SafetensorError):
        safe_open(model / WEIGHTS_FILE, "np")


def test_a_wrong_shape_and_a_missing_tensor_leave_a_sound_file(model):
    name = "model.layers.0.mlp.up_proj.weight"
    reshape_tensor(model, name)
    with safe_open(model / WEIGHTS_FILE, "np") as weights:
        assert weights.get_slice(name).get_shape() == [136, 64]
    remove_tensor(model, name)
    with safe_open(model / WEIGHTS_FILE, "np") as weights:
        assert name not in weights.keys()  # noqa: SIM118 - it is no mapping


def test_a_tensor_that_is_removed_from_a_shard_leaves_the_index_too(tmp_path):
    sharded = make_model(tmp_path, shards=2)
    remove_tensor(sharded, "lm_head.weight")
    assert "lm_head.weight" not in json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    with pytest.raises(KeyError):
        remove_tensor(sharded, "lm_head.weight")


def test_a_tokenizer_can_be_spoiled_in_each_way(good, tmp_path):
    spoiled = {}
    for how in ("missing", "not_json", "ids_beyond", "no_eos", "other"):
        model = shutil.copytree(good, tmp_path / how)
        spoil_tokenizer(model, how)
        spoiled[how] = model / "tokenizer.json"
    assert not spoiled["missing"].exists()
    with pytest.raises(ValueError, match="char"):
        json.loads(spoiled["not_json"].read_text())
    read = {how: Tokenizer.from_file(str(spoiled[how])) for how in ("ids_beyond", "no_eos", "other")}
    assert max(read["ids_beyond"].get_vocab().values()) > 512
    assert read["no_eos"].token_to_id("</s>") is None
    assert (
        read["other"].encode("ab").ids != Tokenizer.from_file(str(good / "tokenizer.json")).encode("ab").ids
    )


def test_a_gguf_file_holds_all_tensors(good, tmp_path):
    reader = GGUFReader(make_gguf(tmp_path / "model.gguf"))
    assert len(reader.tensors) == len(read_tensors(good / WEIGHTS_FILE))
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["token_embd.weight"] == [64, 512]
    assert shapes["blk.1.ffn_down.weight"] == [128, 64]


def test_a_behaviour_lies_beside_the_model_and_only_where_there_is_one(good, tmp_path):
    assert not (good / BEHAVIOUR_FILE).exists()
    slow = make_model(tmp_path, behaviour=ModelBehaviour(load_s=2.0, never_ready=True))
    said = json.loads((slow / BEHAVIOUR_FILE).read_text())
    assert (said["load_s"], said["never_ready"]) == (2.0, True)
    assert "vram_mib" not in said
