"""Which tensors of a server can be compared with the files, and what a difference means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.model_facts import ModelFacts, Tensor
from rules.model_loaded import RankChecksums, comparable, compare

LAYERS = 3
NAMES = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(
        f"model.layers.{n}.{rest}.weight"
        for n in range(LAYERS)
        for rest in ("input_layernorm", "post_attention_layernorm", "self_attn.o_proj", "mlp.down_proj")
    ),
)
SUMS = {name: f"{number:016x}" for number, name in enumerate(NAMES, 1)}
OTHER = "f" * 16


def rank(checksums: dict[str, str] | None = None, **fields) -> RankChecksums:
    return RankChecksums(checksums=SUMS if checksums is None else checksums, **fields)


def facts(*, vocab: int = 512, dtype: str = "BF16", config: dict | None = None) -> ModelFacts:
    tensors = {
        name: Tensor(
            dtype=dtype,
            shape=(64,) if "norm" in name else (vocab if "embed" in name or "lm_head" in name else 64, 64),
            shard="model.safetensors",
        )
        for name in NAMES
    }
    return ModelFacts(
        format="safetensors",
        architectures=("LlamaForCausalLM",),
        model_type="llama",
        vocab_size=vocab,
        hidden_size=64,
        layers=LAYERS,
        config={"torch_dtype": "bfloat16"} if config is None else config,
        tensors=tensors,
        shards=("model.safetensors",),
        tokenizer=None,
        weights_bytes=1,
        size_bytes=1,
    )


# --- what can be compared --------------------------------------------------------------------------


def test_what_a_server_lists_under_the_files_names_can_be_compared():
    joined = {**SUMS, "model.layers.0.self_attn.qkv_proj.weight": OTHER}
    assert comparable([rank(joined)], facts()) == tuple(sorted(NAMES))
    assert comparable([rank({})], facts()) == ()


def test_of_what_is_cut_up_over_gpus_only_vectors_are_whole():
    found = comparable([rank(tp_size=2)], facts())
    assert len(found) == 1 + 2 * LAYERS
    assert all("norm" in name for name in found)


def test_an_embedding_that_is_padded_cannot():
    found = comparable([rank()], facts(vocab=500))
    assert set(NAMES) - set(found) == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("stored", "config", "flag", "can"),
    [
        ("BF16", "bfloat16", "auto", True),
        ("BF16", "bfloat16", "float16", False),
        ("F16", "float16", "auto", True),
        ("F16", "bfloat16", "half", True),
        ("F32", "float32", "auto", False),  # loaded at half the precision
        ("F32", "float32", "float32", True),
        ("BF16", None, "auto", False),
    ],
)
def test_only_what_is_loaded_in_its_own_type_can(stored, config, flag, can):
    named = {} if config is None else {"dtype": config}
    assert bool(comparable([rank()], facts(dtype=stored, config=named), dtype=flag)) is can


# --- what it means ---------------------------------------------------------------------------------


def test_the_same_in_both_is_agreement():
    compared = compare([rank()], SUMS, NAMES)
    assert (compared.agreeing, compared.faults, compared.unlike) == (len(NAMES), (), ())
    assert compared.in_words == f"{len(NAMES)} tensors have the file's checksum"


@given(st.sampled_from([name for name in NAMES if "norm" in name or "embed" in name]))
def test_an_embedding_or_norm_that_differs_is_a_fault_that_names_it(name):
    compared = compare([rank({**SUMS, name: OTHER})], SUMS, NAMES)
    assert compared.faults == (f"{name}: the server has {OTHER}, the file {SUMS[name]}",)


@given(st.integers(0, LAYERS - 1), st.sampled_from(["self_attn.o_proj", "mlp.down_proj"]))
def test_a_matrix_of_one_layer_that_differs_where_others_agree_is_a_fault(layer, rest):
    name = f"model.layers.{layer}.{rest}.weight"
    assert [f.split(":")[0] for f in compare([rank({**SUMS, name: OTHER})], SUMS, NAMES).faults] == [name]


def test_a_kind_that_differs_in_all_layers_was_repacked_and_that_is_said():
    changed = {name: OTHER for name in NAMES if "o_proj" in name or "lm_head" in name}
    compared = compare([rank({**SUMS, **changed})], SUMS, NAMES)
    assert compared.faults == ()
    assert compared.unlike == ("lm_head.weight", "model.layers.N.self_attn.o_proj.weight")
    assert "changed when loaded, so not compared: lm_head.weight, model.layers.N" in compared.in_words


def test_one_rank_that_differs_is_a_fault_though_another_agrees():
    name = "model.norm.weight"
    compared = compare([rank(), rank({**SUMS, name: OTHER})], SUMS, NAMES)
    assert [fault.split(":")[0] for fault in compared.faults] == [name]
    assert compared.agreeing == len(NAMES) - 1


@given(st.sampled_from([name for name in NAMES if "norm" in name or "embed" in name]))
def test_an_embedding_or_norm_that_only_the_server_has_was_kept_from_before(name):
    in_file = {key: value for key, value in SUMS.items() if key != name}
    compared = compare([rank()], in_file, in_file)
    assert compared.faults == (f"{name}: the server has it, the files do not",)


def test_a_family_whose_tensors_a_server_renames_has_kept_nothing():
    """As with a model that sees: the language model's names differ, the eye's do not."""
    server = {
        **{f"language_model.{name}": value for name, value in SUMS.items()},
        "visual.norm.weight": "1" * 16,
    }
    files = {"visual.norm.weight": "1" * 16}
    compared = compare([rank(server)], files, {*NAMES, *files})
    assert (compared.agreeing, compared.faults) == (1, ())
    assert compare([rank(server)], {}, NAMES).faults == ()


def test_a_draft_model_beside_it_is_none_of_the_files_business():
    compared = compare([rank({**SUMS, "draft.model.norm.weight": OTHER})], SUMS, NAMES)
    assert (compared.agreeing, compared.faults) == (len(NAMES), ())


def test_nothing_to_compare_is_said_and_no_agreement():
    assert compare([rank({})], {}, NAMES).in_words == "no tensor can be compared with the file by checksum"
