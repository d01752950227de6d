"""What is wrong with a model's release, by what was read of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.model_artefact import doubts, faults
from rules.model_facts import ModelFacts, Tensor, TokenizerFacts, number, text_config, token_ids
from tests.rules.models import (
    TOKENIZER,
    llama,
    llama_config,
    llama_shapes,
    model,
    reshaped,
    sharded,
    tensors,
    without,
)

SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "x.safetensors")


@st.composite
def llamas(draw: st.DrawFn) -> ModelFacts:
    """Whole Llamas of all sizes, tied or not, with biases or not, in one file or in several."""
    groups, head = draw(st.integers(1, 3)), draw(st.sampled_from([8, 16, None]))
    heads = groups * draw(st.integers(1, 3))
    facts = llama(
        num_key_value_heads=groups,
        num_attention_heads=heads,
        head_dim=head,
        hidden_size=heads * draw(st.sampled_from([8, 24])),
        intermediate_size=draw(st.integers(50, 60)),
        vocab_size=draw(st.integers(400, 420)),
        num_hidden_layers=draw(st.integers(1, 4)),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
    )
    if draw(st.booleans()):
        return facts
    letters = st.text("abc019-_.", min_size=1, max_size=8)
    names = draw(st.lists(letters, min_size=1, max_size=4, unique=True))
    return sharded(facts, [f"{name}.safetensors" for name in names])


# --- Llamas ----------------------------------------------------------------------------------------


@given(facts=llamas())
def test_a_whole_llama_has_no_faults_whatever_its_files_are_called(facts):
    assert (faults(facts), doubts(facts)) == ((), ())


@given(facts=llamas(), data=st.data())
def test_any_tensor_that_is_missing_is_found_by_name(facts, data):
    name = data.draw(st.sampled_from(sorted(facts.tensors)))
    layers = facts.layers
    found = faults(without(facts, name))
    if name == "lm_head.weight":
        assert any("lm_head.weight is missing" in fault for fault in found)
    elif "embed_tokens" in name:
        assert any("embedding is missing" in fault for fault in found)
    else:
        assert any(f"{name} is missing" in fault for fault in found), (layers, found)


@given(facts=llamas(), data=st.data())
def test_any_wrong_shape_is_found_with_its_tensor_and_numbers(facts, data):
    name = data.draw(st.sampled_from(sorted(facts.tensors)))
    shape = list(facts.tensors[name].shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] += data.draw(st.integers(-shape[axis], 300).filter(bool))
    found = faults(reshaped(facts, name, shape))
    assert any(name in fault and str(shape) in fault for fault in found)


@given(facts=llamas(), data=st.data())
def test_a_tensor_of_other_dimensions_is_found(facts, data):
    name = data.draw(st.sampled_from(sorted(facts.tensors)))
    shape = facts.tensors[name].shape
    other = data.draw(st.sampled_from([(), (*shape, 1), shape[:-1]]))
    assert any(name in fault for fault in faults(reshaped(facts, name, other)))


@pytest.mark.parametrize("way", ["beyond", "missing"])
def test_the_number_of_layers_is_as_config_says(way):
    config = llama_config(num_hidden_layers=4)
    told = {**config, "num_hidden_layers": 3 if way == "beyond" else 6}
    (found,) = faults(model(told, llama_shapes(config)))
    expected = {
        "beyond": "The weights hold model.layers.3, but config.json says 3 layers",
        "missing": "Layers are missing: model.layers.4, model.layers.5 of the 6",
    }
    assert expected[way] in found


def test_a_model_without_any_layer_of_the_usual_name_is_found():
    config = llama_config()
    renamed = {name.replace("layers", "strata"): shape for name, shape in llama_shapes(config).items()}
    assert any("no tensor has the usual name" in fault for fault in faults(model(config, renamed)))


def test_sizes_that_nobody_declares_are_compared_among_the_tensors():
    config = llama_config()
    silent = {key: value for key, value in config.items() if key not in {"intermediate_size", "hidden_size"}}
    facts = model({**silent, "model_type": "mistral"}, llama_shapes(config))
    assert faults(facts) == ()
    (found,) = faults(reshaped(facts, "model.layers.1.mlp.up_proj.weight", (97, 64)))
    assert "97 where intermediate_size is 96 by model.layers.0.mlp.down_proj.weight" in found


def test_what_all_layers_but_one_have_is_missing_there_though_nobody_here_knows_it():
    config = llama_config(num_hidden_layers=3)
    more = {f"model.layers.{layer}.self_attn.sinks": (4,) for layer in range(3)}
    facts = model(config, {**llama_shapes(config), **more})
    assert faults(facts) == ()
    (found,) = faults(without(facts, "model.layers.1.self_attn.sinks"))
    assert found.startswith("Tensor model.layers.1.self_attn.sinks is missing")


def test_heads_that_are_no_multiple_of_their_groups_are_found():
    config = llama_config(num_attention_heads=4, num_key_value_heads=3)
    assert any("no multiple" in fault for fault in faults(model(config, llama_shapes(config))))


def test_a_draft_that_borrows_the_familys_name_is_not_held_to_it():
    config = llama_config(architectures=["LlamaForCausalLMEagle"], num_hidden_layers=1)
    shapes = {"fc.weight": (64, 128), "layers.0.self_attn.q_proj.weight": (64, 128)}
    assert faults(model(config, shapes)) == ()


def test_a_model_that_names_no_architecture_is_refused():
    config = llama_config()
    facts = model(config, llama_shapes(config), architectures=())
    assert faults(facts) == ("config.json names no architecture: no server can load it.",)


# --- other families --------------------------------------------------------------------------------


def family(kind: str, also: dict[str, tuple[int, ...]], **changed: object) -> ModelFacts:
    """A model like a Llama whose layers have more tensors."""
    config = llama_config(model_type=kind, architectures=[f"{kind.title()}ForCausalLM"], **changed)
    shapes = llama_shapes(config)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in also.items()}
    return model(config, shapes)


QWEN2 = family("qwen2", {f"self_attn.{one}_proj.bias": ((64,) if one == "q" else (32,)) for one in "qkv"})
QWEN3 = family("qwen3", {f"self_attn.{one}_norm.weight": (16,) for one in "qk"})
GEMMA2 = family("gemma2", {f"{one}_feedforward_layernorm.weight": (64,) for one in ("pre", "post")})


@pytest.mark.parametrize("facts", [QWEN2, QWEN3, GEMMA2], ids=["qwen2", "qwen3", "gemma2"])
def test_what_a_family_has_beside_the_usual_is_wanted_of_each_layer(facts):
    assert faults(facts) == ()
    usual = llama_shapes(llama_config())
    for more in sorted(facts.tensors.keys() - usual.keys()):
        same = [name for name in facts.tensors if name.endswith(more.split(".", 3)[3])]
        assert any(f"{more} is missing" in fault for fault in faults(without(facts, *same)))


def test_a_family_that_shares_its_embedding_by_default_needs_no_head():
    config = llama_config(model_type="gemma", architectures=["GemmaForCausalLM"], tie_word_embeddings=None)
    facts = model(config, llama_shapes({**config, "tie_word_embeddings": True}))
    assert faults(facts) == ()
    (found,) = faults(facts.model_copy(update={"model_type": "llama"}))
    assert "lm_head.weight is missing" in found


def test_a_head_beside_a_shared_embedding_is_allowed_but_must_fit():
    config = llama_config(tie_word_embeddings=True)
    facts = model(config, {**llama_shapes(config), "lm_head.weight": (512, 64)})
    assert faults(facts) == ()
    assert any("lm_head" in fault for fault in faults(reshaped(facts, "lm_head.weight", (511, 64))))


def test_an_embedding_model_has_no_head():
    config = llama_config(architectures=["MistralModel"], model_type="mistral")
    facts = model(config, llama_shapes({**config, "tie_word_embeddings": True}, prefix=""))
    assert faults(facts) == ()


def test_fused_projections_are_known():
    config = llama_config(model_type="phi3", architectures=["Phi3ForCausalLM"])
    shapes = {name: shape for name, shape in llama_shapes(config).items() if not separate(name)}
    for layer in range(2):
        shapes[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = (64 + 2 * 32, 64)
        shapes[f"model.layers.{layer}.mlp.gate_up_proj.weight"] = (192, 64)
    facts = model(config, shapes)
    assert faults(facts) == ()
    assert faults(without(facts, "model.layers.1.self_attn.qkv_proj.weight")) == (
        "Tensor model.layers.1.self_attn.qkv_proj.weight is missing. Copy the model once more.",
    )


def separate(name: str) -> bool:
    return any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))


@pytest.mark.parametrize(
    ("nested", "prefix", "head"),
    [
        ({"text_config"}, "language_model.model.", "language_model.lm_head.weight"),
        ({"text_config"}, "model.language_model.", "lm_head.weight"),
        ({"llm_config"}, "language_model.model.", "language_model.lm_head.weight"),
        ({"thinker_config", "text_config"}, "thinker.model.", "thinker.lm_head.weight"),
    ],
)
def test_a_language_model_within_a_larger_one_is_judged_by_its_own_part(nested, prefix, head):
    text = llama_config()
    shapes = llama_shapes(text, prefix)
    shapes[head] = shapes.pop("lm_head.weight")
    shapes["vision_tower.encoder.layers.0.self_attn.q_proj.weight"] = (7, 7)
    shapes["vision_tower.blocks.9.attn.qkv.weight"] = (21, 7)
    config = text
    for key in sorted(nested):
        config = {key: config, "hidden_size": 7, "num_hidden_layers": 30}
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", **config}
    facts = model(config, shapes)
    assert text_config(config) == text
    assert (faults(facts), doubts(facts)) == ((), ())
    name = f"{prefix}layers.1.mlp.up_proj.weight"
    assert any(name in fault for fault in faults(without(facts, name)))
    assert any(name in fault for fault in faults(reshaped(facts, name, (95, 64))))


def test_a_nested_configuration_may_leave_almost_everything_to_its_defaults():
    shapes = llama_shapes(llama_config(), "language_model.model.")
    del shapes["lm_head.weight"]
    text = {"model_type": "llama", "num_hidden_layers": 2}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    assert faults(model(config, shapes)) == ()


def test_more_rows_than_tokens_are_no_fault_of_a_family_that_is_not_known():
    config = llama_config(model_type="mllama_text_model", architectures=["MllamaForConditionalGeneration"])
    shapes = {**llama_shapes(config), "model.embed_tokens.weight": (520, 64)}
    more_tokens = TOKENIZER.model_copy(update={"vocab_size": 515})
    assert faults(model(config, shapes, tokenizer=more_tokens)) == ()
    (found,) = faults(model(config, {**shapes, "model.embed_tokens.weight": (510, 64)}))
    assert "[510, 64], but vocab_size is 512" in found
    assert any(
        "hidden_size is 64" in fault
        for fault in faults(model(config, {**shapes, "lm_head.weight": (512, 65)}))
    )


# --- layers that differ on purpose -----------------------------------------------------------------


def mixture(kind: str = "deepseek_v3", **changed: object) -> ModelFacts:
    """A model whose first layer is dense and whose others have four experts each; one more layer drafts."""
    config = llama_config(
        model_type=kind,
        architectures=["DeepseekV3ForCausalLM"],
        num_hidden_layers=4,
        n_routed_experts=4,
        num_nextn_predict_layers=1,
        **changed,
    )
    shapes = {name: shape for name, shape in llama_shapes(config).items() if ".mlp." not in name}
    dense = {f"mlp.{one}_proj.weight": (96, 64) for one in ("gate", "up", "down")}
    experts = {
        f"mlp.experts.{expert}.{one}_proj.weight": (32, 64)
        for expert in range(4)
        for one in ("gate", "up", "down")
    }
    sparse = {**experts, "mlp.gate.weight": (4, 64), "mlp.gate.e_score_correction_bias": (4,)}
    for layer, content in enumerate([dense, sparse, sparse, sparse]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in content.items()}
    # what drafts has all that a sparse layer has, and more
    third = {name: shape for name, shape in shapes.items() if "layers.3." in name}
    shapes |= {name.replace("layers.3.", "layers.4."): shape for name, shape in third.items()}
    shapes |= {f"model.layers.4.{name}": (64,) for name in ("enorm.weight", "hnorm.weight")}
    return model(config, shapes)


def test_dense_and_sparse_layers_beside_each_other_are_as_they_should_be():
    assert (faults(mixture()), doubts(mixture())) == ((), ())


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (
            "model.layers.2.mlp.gate.e_score_correction_bias",
            "model.layers.2: mlp.gate.e_score_correction_bias",
        ),
        ("model.layers.2.input_layernorm.weight", "model.layers.2: input_layernorm.weight missing"),
        (
            "model.layers.3.mlp.experts.1.up_proj.weight",
            "model.layers.3.mlp.experts.1: up_proj.weight missing",
        ),
    ],
)
def test_a_tensor_missing_in_one_of_several_kinds_of_layers_is_found(lost, expected):
    assert any(expected in fault for fault in faults(without(mixture(), lost)))


def test_an_expert_that_is_missing_is_found():
    facts = mixture()
    for expert in (1, 3):  # in the middle, and the last
        lost = [name for name in facts.tensors if f"layers.2.mlp.experts.{expert}." in name]
        (found,) = faults(without(facts, *lost))
        assert found.startswith(f"Experts are missing in model.layers.2.mlp.experts: {expert} of 4")


def test_in_a_family_nobody_knows_an_odd_layer_is_a_doubt_and_no_fault():
    facts = without(mixture("something_new"), "model.layers.2.input_layernorm.weight")
    assert faults(facts) == ()
    (doubt,) = doubts(facts)
    assert "model.layers.2: input_layernorm.weight missing" in doubt


def test_a_layer_missing_as_a_whole_is_a_fault_in_any_family():
    facts = mixture("something_new")
    lost = [name for name in facts.tensors if "layers.1." in name]
    (found,) = faults(without(facts, *lost))
    assert "model.layers.1 of the 4" in found


def test_layers_that_were_cut_out_by_design_are_no_fault():
    config = llama_config(model_type="nemotron-nas", architectures=["DeciLMForCausalLM"], block_configs=[{}])
    shapes = {name: shape for name, shape in llama_shapes(config).items() if "layers.1." not in name}
    assert faults(model(config, shapes)) == ()


def test_hybrid_layers_are_two_kinds():
    config = llama_config(
        model_type="qwen3_next", architectures=["Qwen3NextForCausalLM"], num_hidden_layers=4, head_dim=32
    )
    shapes = llama_shapes(config)
    for layer in (0, 1, 2):
        shapes = {name: shape for name, shape in shapes.items() if f"layers.{layer}.self_attn" not in name}
        shapes[f"model.layers.{layer}.linear_attn.in_proj.weight"] = (256, 64)
    shapes["model.layers.3.self_attn.q_proj.weight"] = (256, 64)  # it carries a gate as well
    facts = model(config, {**shapes, "mtp.layers.0.mlp.up_proj.weight": (96, 64)})
    assert (faults(facts), doubts(facts)) == ((), ())


def test_the_experts_of_a_known_family_have_the_shape_that_config_says():
    config = llama_config(model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=2)
    shapes = {name: shape for name, shape in llama_shapes(config).items() if ".mlp." not in name}
    for layer in range(2):
        module = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{module}.gate.weight"] = (2, 64)
        for expert in range(2):
            shapes |= {f"{module}.experts.{expert}.{one}.weight": (96, 64) for one in ("w1", "w3")}
            shapes[f"{module}.experts.{expert}.w2.weight"] = (64, 96)
    facts = model(config, shapes)
    assert faults(facts) == ()
    name = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    assert any(name in fault for fault in faults(reshaped(facts, name, (64, 95))))


# --- quantized weights -----------------------------------------------------------------------------


def packed() -> ModelFacts:
    """A Llama whose projections are packed as AWQ does it."""
    facts = llama()
    config = {**facts.config, "quantization_config": {"quant_method": "awq"}}
    kept = {name: tensor for name, tensor in facts.tensors.items() if "_proj" not in name}
    for name in facts.tensors.keys() - kept.keys():
        module = name.removesuffix(".weight")
        for part in ("qweight", "qzeros", "scales"):
            dtype = "F16" if part == "scales" else "I32"
            kept[f"{module}.{part}"] = Tensor(dtype=dtype, shape=(64, 8), shard="model.safetensors")
    return facts.model_copy(update={"tensors": kept, "config": config, "quantization": "awq"})


def test_packed_weights_have_names_and_shapes_of_their_own():
    assert (faults(packed()), doubts(packed())) == ((), ())


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_part_of_a_packed_weight_that_is_missing_is_found(part):
    (found,) = faults(without(packed(), f"model.layers.1.mlp.up_proj.{part}"))
    assert found.startswith(f"model.layers.1.mlp.up_proj: {part} missing")


def test_a_packed_weight_that_is_missing_as_a_whole_is_found():
    lost = [f"model.layers.1.mlp.up_proj.{part}" for part in ("qweight", "qzeros", "scales")]
    assert any("model.layers.1.mlp.up_proj is missing" in fault for fault in faults(without(packed(), *lost)))


def test_eight_bit_floats_keep_their_shape_and_some_layers_may_be_left_as_they_are():
    facts = llama().model_copy(update={"quantization": "fp8"})
    name = "model.layers.0.mlp.up_proj.weight"
    small = facts.tensors[name].model_copy(update={"dtype": "F8_E4M3"})
    scale = Tensor(dtype="F32", shape=(1,), shard="model.safetensors")
    both = {**facts.tensors, name: small, "model.layers.0.mlp.up_proj.weight_scale": scale}
    facts = facts.model_copy(update={"tensors": both})
    assert faults(facts) == ()
    assert any(name in fault for fault in faults(reshaped(facts, name, (95, 64))))


def test_parts_below_a_weight_need_not_be_in_each_layer():
    """bitsandbytes, where some layers were left as they are."""
    facts = llama().model_copy(update={"quantization": "bitsandbytes"})
    name = "model.layers.0.mlp.up_proj.weight"
    part = Tensor(dtype="U8", shape=(3072, 1), shard="model.safetensors")
    below = {f"{name}.{one}": part for one in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4")}
    below["model.layers.0.mlp.act_scale.scales"] = part
    facts = facts.model_copy(update={"tensors": {**facts.tensors, **below, name: part}})
    assert faults(facts) == ()
    assert any(
        "mlp.up_proj is missing" in fault
        for fault in faults(without(facts, name.replace("layers.0", "layers.1")))
    )


def test_a_size_is_a_whole_number_that_is_not_negative():
    said = {"a": -1, "b": True, "c": "7", "d": [7], "e": None, "f": 7}
    assert [number(said, key) for key in said] == [None, None, None, None, None, 7]
    assert number(said, "a", "f") == 7


def test_a_configuration_of_nonsense_is_judged_in_time():
    config = llama_config(num_hidden_layers=10**12, head_dim=-1, num_key_value_heads=0)
    found = faults(model(config, llama_shapes(llama_config())))
    assert any("Layers are missing: model.layers.10," in fault for fault in found)


# --- files -----------------------------------------------------------------------------------------


WHOLE = sharded(llama(), SHARDS)


def test_a_file_that_the_index_names_but_is_not_there_is_found():
    there = {name: tensor for name, tensor in WHOLE.tensors.items() if tensor.shard != "x.safetensors"}
    found = faults(WHOLE.model_copy(update={"tensors": there, "shards": SHARDS[:2]}))
    assert any("tensors are in x.safetensors, which is not there" in fault for fault in found)


def test_a_file_that_the_index_does_not_name_is_found():
    found = faults(WHOLE.model_copy(update={"shards": (*SHARDS, "old.safetensors")}))
    assert len(found) == 1
    assert found[0].startswith("old.safetensors is not in the index")


def test_index_and_files_are_compared_both_ways():
    name, shard = min((WHOLE.index or {}).items())
    lacks = WHOLE.model_copy(update={"index": {**(WHOLE.index or {}), "ghost.weight": shard}})
    assert any(f"{shard} holds ghost.weight; it does not" in fault for fault in faults(lacks))
    unlisted = {key: value for key, value in (WHOLE.index or {}).items() if key != name}
    (found,) = faults(WHOLE.model_copy(update={"index": unlisted}))
    assert f"{shard} holds {name}, which the index does not name" in found


def test_a_tensor_in_another_file_than_the_index_says_is_found():
    name, shard = min((WHOLE.index or {}).items())
    other = next(one for one in SHARDS if one != shard)
    found = faults(WHOLE.model_copy(update={"index": {**(WHOLE.index or {}), name: other}}))
    assert any(f"{other} holds {name}; it does not" in fault for fault in found)
    assert any(f"{shard} holds {name}, which the index does not name there" in fault for fault in found)


def test_a_tensor_in_two_files_is_found():
    found = faults(llama().model_copy(update={"repeated": {"lm_head.weight": ("a", "b")}}))
    assert any("lm_head.weight is in a and b" in fault for fault in found)


def test_without_an_index_files_that_count_themselves_are_all_there():
    (found,) = faults(llama().model_copy(update={"shards": SHARDS[:2]}))
    assert found.startswith("model-00003-of-00003.safetensors of 3 files of weights is not there")


# --- tokenizer -------------------------------------------------------------------------------------


def with_tokenizer(**changed: object) -> ModelFacts:
    return llama().model_copy(update={"tokenizer": TOKENIZER.model_copy(update=changed)})


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (llama().model_copy(update={"tokenizer": None}), "No tokenizer"),
        (with_tokenizer(fault="EOF at line 3", vocab_size=None), "tokenizer.json is broken: EOF at line 3"),
        (with_tokenizer(vocab_size=513), "tokens up to id 512, the embedding has 512 rows"),
        (with_tokenizer(meanings={0: "<s>"}), "eos_token_id 1, but the tokenizer has no token of that id"),
        (with_tokenizer(meanings={1: "</s>"}), "bos_token_id 0, but the tokenizer has no token of that id"),
        (with_tokenizer(eos="<end>"), "eos_token '<end>', which the tokenizer tokenizer.json does not have"),
        (with_tokenizer(bos="<go>"), "bos_token '<go>', which the tokenizer tokenizer.json does not have"),
        (
            with_tokenizer(meanings={0: "<s>", 1: "foo", 7: "</s>"}),
            "eos_token_id is 1 ('foo') by the configurations, but tokenizer_config.json says '</s>', which ",
        ),
    ],
)
def test_a_tokenizer_of_another_model_is_found(facts, expected):
    assert any(expected in fault for fault in faults(facts))


def test_as_many_tokens_as_rows_fit():
    assert faults(with_tokenizer(vocab_size=512)) == ()


def test_one_of_several_ends_is_enough():
    facts = with_tokenizer(meanings={0: "<s>", 1: "<end>", 9: "</s>"}).model_copy(update={"eos_ids": (1, 9)})
    assert faults(facts) == ()


def test_what_the_tokenizer_does_not_name_is_not_compared():
    assert faults(with_tokenizer(eos=None, bos=None)) == ()


def test_a_kind_of_tokenizer_that_is_not_read_is_a_doubt():
    facts = with_tokenizer(kind="tekken.json", vocab_size=None, meanings={}, eos=None, bos=None)
    assert faults(facts) == ()
    assert doubts(facts) == ("tekken.json is a kind of tokenizer that was not read.",)


def test_a_model_that_never_ends_its_answers_is_a_doubt():
    (doubt,) = doubts(with_tokenizer(eos=None).model_copy(update={"eos_ids": ()}))
    assert "No file names a token that ends an answer" in doubt


def test_the_ids_of_tokens_are_numbers_or_lists_of_them():
    assert token_ids("eos", {"eos": 3}, {"eos": [1, 3, -1, True]}, {"eos": None}, {"eos": "2"}, {}) == (1, 3)


# --- GGUF ------------------------------------------------------------------------------------------

_GGUF = {
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}


def gguf() -> ModelFacts:
    renamed = {}
    for name, shape in llama_shapes(llama_config()).items():
        for theirs, ours in _GGUF.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901
        renamed[name] = shape
    return model(
        llama_config(tie_word_embeddings=None),
        renamed,
        format="gguf",
        shards=("m.gguf",),
        tensors=tensors(renamed, "Q8_0", "m.gguf"),
        quantization="q8_0",
        tokenizer=TokenizerFacts(kind="gguf", vocab_size=512, meanings={0: "a", 1: "b"}, sha256="c" * 64),
    )


def test_a_whole_gguf_has_no_faults_though_its_numbers_are_packed():
    assert (faults(gguf()), doubts(gguf())) == ((), ())
    assert faults(without(gguf(), "output.weight")) == ()  # the embedding serves for it


@given(data=st.data())
def test_any_tensor_missing_in_a_gguf_or_of_a_wrong_shape_is_found(data):
    facts = gguf()
    name = data.draw(st.sampled_from(sorted(facts.tensors)))
    expected = "embedding is missing" if name == "token_embd.weight" else f"{name} is missing"
    if name != "output.weight":
        assert any(expected in fault for fault in faults(without(facts, name)))
    wrong = (facts.tensors[name].shape[0] + 32, *facts.tensors[name].shape[1:])
    assert any(name in fault for fault in faults(reshaped(facts, name, wrong)))
