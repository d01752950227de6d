"""Facts of models that are whole, as they would be read of a directory; tests take something away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rules.model_facts import ModelFacts, Tensor, TokenizerFacts, layer_count, number, text_config, token_ids

TOKENIZER = TokenizerFacts(
    kind="tokenizer.json",
    vocab_size=400,
    special_ids={"<s>": 0, "</s>": 1},
    meanings={0: "<s>", 1: "</s>"},
    eos="</s>",
    bos="<s>",
    sha256="a" * 64,
)
Shapes = Mapping[str, Sequence[int]]


def model(config: Mapping[str, Any], shapes: Shapes, **fields: Any) -> ModelFacts:
    """Return the facts of a model with this config.json, all its tensors in bfloat16 in one file."""
    text = text_config(config)
    known: dict[str, Any] = {
        "format": "safetensors",
        "architectures": config.get("architectures", ("LlamaForCausalLM",)),
        "model_type": text.get("model_type", config.get("model_type", "")),
        "vocab_size": number(text, "vocab_size"),
        "hidden_size": number(text, "hidden_size"),
        "layers": layer_count(text),
        "config": dict(config),
        "tensors": tensors(shapes),
        "shards": ("model.safetensors",),
        "tokenizer": TOKENIZER,
        "eos_ids": token_ids("eos_token_id", config, text),
        "bos_ids": token_ids("bos_token_id", config, text),
        "files": {"tokenizer.json": "b" * 64},
        "weights_bytes": 1000,
        "size_bytes": 2000,
    }
    return ModelFacts.model_validate({**known, **fields})


def tensors(shapes: Shapes, dtype: str = "BF16", shard: str = "model.safetensors") -> dict[str, Tensor]:
    return {name: Tensor(dtype=dtype, shape=tuple(shape), shard=shard) for name, shape in shapes.items()}


def llama_config(**changed: Any) -> dict[str, Any]:
    """Return the config.json of a Llama of two layers; what is None is left out."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changed,
    }
    return {key: value for key, value in config.items() if value is not None}


def llama_shapes(config: Mapping[str, Any], prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    """Return what a Llama of this configuration holds, by the definition of its family."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, config.get("num_key_value_heads", heads) * head
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embed_tokens.weight": (vocab, hidden),
        f"{prefix}norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.get("attention_bias"):
        layer |= {f"self_attn.{one}_proj.bias": (keys,) for one in "kv"}
        layer |= {"self_attn.q_proj.bias": (queries,), "self_attn.o_proj.bias": (hidden,)}
    for number_ in range(config["num_hidden_layers"]):
        shapes |= {f"{prefix}layers.{number_}.{name}": shape for name, shape in layer.items()}
    return shapes


def llama(**changed: Any) -> ModelFacts:
    """Return a whole Llama, its configuration changed like this."""
    config = llama_config(**changed)
    return model(config, llama_shapes(config))


def sharded(facts: ModelFacts, names: Sequence[str]) -> ModelFacts:
    """Return the model in files of these names, one tensor after the other, with an index."""
    index = {name: names[place % len(names)] for place, name in enumerate(sorted(facts.tensors))}
    placed = {
        name: tensor.model_copy(update={"shard": index[name]}) for name, tensor in facts.tensors.items()
    }
    return facts.model_copy(
        update={"tensors": placed, "index": index, "shards": tuple(sorted({*index.values()}))}
    )


def without(facts: ModelFacts, *names: str) -> ModelFacts:
    """Return the model without some tensors, in the files and in the index."""
    kept = {name: tensor for name, tensor in facts.tensors.items() if name not in names}
    index = facts.index and {name: shard for name, shard in facts.index.items() if name not in names}
    return facts.model_copy(update={"tensors": kept, "index": index})


def reshaped(facts: ModelFacts, name: str, shape: Sequence[int]) -> ModelFacts:
    """Return the model with a tensor of this shape instead."""
    tensor = facts.tensors[name].model_copy(update={"shape": tuple(shape)})
    return facts.model_copy(update={"tensors": {**facts.tensors, name: tensor}})
