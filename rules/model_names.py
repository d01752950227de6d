"""How the tensors of language models are called, and which shapes their configuration gives them.

Only the families that stack equal layers of the one usual kind are described whole. Sizes have the names of
config.json, or a name of ours where they are computed from several (see `rules.model_shapes`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

Shapes = dict[str, tuple[str, ...]]

_QUERIES, _KEYS = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"
_HIDDEN, _INNER, _HEAD = "hidden_size", "intermediate_size", "head_dim"
_EXPERT, _EXPERTS = "moe_intermediate_size", "the number of experts"
_FUSED_ATTENTION, _FUSED_MLP = "queries, keys and values together", "2 x intermediate_size"

# What comes before `layers`; other stacks, of eyes, ears or drafts, have other words there.
_PREFIX = r"(?P<prefix>(?:(?:model|language_model|thinker|transformer|text_model|llm)\.)*)"


class Naming(NamedTuple):
    """One way of naming tensors. `shapes` and `required` speak of a layer's tensors, without the layer."""

    layer: re.Pattern[str]
    embedding: re.Pattern[str]
    head: re.Pattern[str]
    norm: str
    shapes: Shapes
    required: tuple[tuple[str, ...], ...]


def _experts(module: str, names: tuple[str, str, str], inner: str) -> Shapes:
    gate, up, down = names
    return {
        f"{module}.experts.*.{gate}.weight": (inner, _HIDDEN),
        f"{module}.experts.*.{up}.weight": (inner, _HIDDEN),
        f"{module}.experts.*.{down}.weight": (_HIDDEN, inner),
        f"{module}.gate.weight": (_EXPERTS, _HIDDEN),
    }


HUGGING_FACE = Naming(
    layer=re.compile(_PREFIX + r"(?:layers|h|blocks|block)\.(?P<number>\d+)\.(?P<rest>.+)"),
    embedding=re.compile(_PREFIX + r"(?:embed_tokens|wte|word_embeddings|tok_embeddings)\.weight"),
    head=re.compile(_PREFIX + r"(?:lm_head|embed_out|output)\.weight"),
    norm="norm.weight",
    shapes={
        "input_layernorm.weight": (_HIDDEN,),
        "post_attention_layernorm.weight": (_HIDDEN,),
        "pre_feedforward_layernorm.weight": (_HIDDEN,),
        "post_feedforward_layernorm.weight": (_HIDDEN,),
        "self_attn.q_proj.weight": (_QUERIES, _HIDDEN),
        "self_attn.q_proj.bias": (_QUERIES,),
        "self_attn.k_proj.weight": (_KEYS, _HIDDEN),
        "self_attn.k_proj.bias": (_KEYS,),
        "self_attn.v_proj.weight": (_KEYS, _HIDDEN),
        "self_attn.v_proj.bias": (_KEYS,),
        "self_attn.qkv_proj.weight": (_FUSED_ATTENTION, _HIDDEN),
        "self_attn.o_proj.weight": (_HIDDEN, _QUERIES),
        "self_attn.o_proj.bias": (_HIDDEN,),
        "self_attn.q_norm.weight": (_HEAD,),
        "self_attn.k_norm.weight": (_HEAD,),
        "mlp.gate_proj.weight": (_INNER, _HIDDEN),
        "mlp.gate_proj.bias": (_INNER,),
        "mlp.up_proj.weight": (_INNER, _HIDDEN),
        "mlp.up_proj.bias": (_INNER,),
        "mlp.gate_up_proj.weight": (_FUSED_MLP, _HIDDEN),
        "mlp.down_proj.weight": (_HIDDEN, _INNER),
        "mlp.down_proj.bias": (_HIDDEN,),
        **_experts("mlp", ("gate_proj", "up_proj", "down_proj"), _EXPERT),
        **_experts("block_sparse_moe", ("w1", "w3", "w2"), _INNER),
    },
    required=(
        ("input_layernorm.weight",),
        ("post_attention_layernorm.weight",),
        ("self_attn.q_proj.weight", "self_attn.qkv_proj.weight"),
        ("self_attn.k_proj.weight", "self_attn.qkv_proj.weight"),
        ("self_attn.v_proj.weight", "self_attn.qkv_proj.weight"),
        ("self_attn.o_proj.weight",),
        (
            "mlp.gate_proj.weight",
            "mlp.gate_up_proj.weight",
            "mlp.experts.*.gate_proj.weight",
            "block_sparse_moe.experts.*.w1.weight",
        ),
        (
            "mlp.up_proj.weight",
            "mlp.gate_up_proj.weight",
            "mlp.experts.*.up_proj.weight",
            "block_sparse_moe.experts.*.w3.weight",
        ),
        (
            "mlp.down_proj.weight",
            "mlp.experts.*.down_proj.weight",
            "block_sparse_moe.experts.*.w2.weight",
        ),
    ),
)

GGUF = Naming(
    layer=re.compile(r"(?P<prefix>)blk\.(?P<number>\d+)\.(?P<rest>.+)"),
    embedding=re.compile(r"(?P<prefix>)token_embd\.weight"),
    head=re.compile(r"(?P<prefix>)output\.weight"),
    norm="output_norm.weight",
    shapes={
        "attn_norm.weight": (_HIDDEN,),
        "ffn_norm.weight": (_HIDDEN,),
        "attn_q.weight": (_QUERIES, _HIDDEN),
        "attn_q.bias": (_QUERIES,),
        "attn_k.weight": (_KEYS, _HIDDEN),
        "attn_k.bias": (_KEYS,),
        "attn_v.weight": (_KEYS, _HIDDEN),
        "attn_v.bias": (_KEYS,),
        "attn_output.weight": (_HIDDEN, _QUERIES),
        "attn_q_norm.weight": (_HEAD,),
        "attn_k_norm.weight": (_HEAD,),
        "ffn_gate.weight": (_INNER, _HIDDEN),
        "ffn_up.weight": (_INNER, _HIDDEN),
        "ffn_down.weight": (_HIDDEN, _INNER),
    },
    required=(
        ("attn_norm.weight",),
        ("ffn_norm.weight",),
        ("attn_q.weight",),
        ("attn_k.weight",),
        ("attn_v.weight",),
        ("attn_output.weight",),
        ("ffn_gate.weight", "ffn_gate_exps.weight"),
        ("ffn_up.weight", "ffn_up_exps.weight"),
        ("ffn_down.weight", "ffn_down_exps.weight"),
    ),
)

#: Families whose layers have the usual names, shapes and nothing else, each like all others.
USUAL = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "mixtral")
)
USUAL_IN_GGUF = frozenset(("llama", "qwen2", "qwen3"))
#: Attention as usual, but some layers may have experts and some may not.
MIXED = frozenset(("qwen2_moe", "qwen3_moe"))
#: Layers of two kinds; none is the other with something left out.
TOLD_APART = MIXED | {"deepseek_v2", "deepseek_v3", "glm4_moe", "olmoe"}

_QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_FEED_NORMS = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
_QKV_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
_MLP_BIASES = ("mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")
#: What each layer of a family has beside the usual.
ALSO_REQUIRED: dict[str, tuple[str, ...]] = {
    "qwen2": _QKV_BIASES,
    "qwen3": _QK_NORMS,
    "qwen3_moe": _QK_NORMS,
    "gemma2": _FEED_NORMS,
    "gemma3_text": (*_FEED_NORMS, *_QK_NORMS),
}
#: What config.json may ask for, and of which families that is known.
BY_CONFIG: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "attention_bias": (
        frozenset(("llama", "qwen3", "qwen3_moe", "granite")),
        (*_QKV_BIASES, "self_attn.o_proj.bias"),
    ),
    "mlp_bias": (frozenset(("llama", "granite")), _MLP_BIASES),
}
#: Where config.json does not say: their lm_head is the embedding.
TIED_BY_DEFAULT = frozenset(("gemma", "gemma2", "gemma3_text"))
#: Where config.json does not say: head_dim is hidden_size / num_attention_heads.
HEADS_SHARE_HIDDEN = frozenset(("llama", "mistral", "qwen2", "phi3", "granite", "mixtral", "qwen2_moe"))
