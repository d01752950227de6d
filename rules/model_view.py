"""A model's tensors seen as what they are: its embedding, its head, and its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rules.model_facts import ModelFacts, Tensor, text_config
from rules.model_names import GGUF, HUGGING_FACE, MIXED, USUAL, USUAL_IN_GGUF, Naming

# drafts and adapters reuse a family's name for something else
_WHOLE_MODEL = re.compile(r".*(ForCausalLM|ForConditionalGeneration|ForSequenceClassification|Model)")
# a quantized weight of another type is packed: it has a shape of its own
_FLOATS = re.compile(r"B?F(8|16|32|64).*")
#: Layer -> name of a tensor in it -> the tensor.
Layers = dict[int, dict[str, Tensor]]


class ModelView(NamedTuple):
    """The facts, and which tensors are the language model's layers."""

    facts: ModelFacts
    text: Mapping[str, Any]
    naming: Naming
    prefix: str
    stack: Layers

    @property
    def family(self) -> str:
        """What kind of language model it is, such as llama."""
        return self.facts.model_type

    @property
    def is_known(self) -> bool:
        """Whether all its layers must be of the usual names and shapes."""
        if self.naming is GGUF:
            return self.family in USUAL_IN_GGUF
        whole = any(_WHOLE_MODEL.fullmatch(name) for name in self.facts.architectures)
        return whole and self.family in USUAL | MIXED

    @property
    def is_packed(self) -> bool:
        """Whether a weight may stand in tensors of other names and shapes: GGUF keeps both as they are."""
        return bool(self.facts.quantization) and self.naming is not GGUF

    @property
    def layers(self) -> Layers:
        """The layers that the configuration counts; any behind them predict further tokens."""
        count = self.facts.layers
        return {n: names for n, names in sorted(self.stack.items()) if count is None or n < count}

    def name_of(self, layer: int) -> str:
        """Return what stands before the names of a layer's tensors."""
        return f"{self.prefix}{'blk' if self.naming is GGUF else 'layers'}.{layer}"

    def named(self, pattern: re.Pattern[str]) -> list[tuple[str, Tensor]]:
        """Return the tensors whose whole name matches."""
        return [(name, tensor) for name, tensor in self.facts.tensors.items() if pattern.fullmatch(name)]

    def is_plain(self, tensor: Tensor) -> bool:
        """Return whether a tensor's shape is its weight's own, and not that of packed numbers."""
        return not self.is_packed or bool(_FLOATS.fullmatch(tensor.dtype))


def view(facts: ModelFacts) -> ModelView:
    """Return the facts with the layers of the language model: of several stacks the one with the most."""
    naming = GGUF if facts.format == "gguf" else HUGGING_FACE
    stacks: dict[str, Layers] = {}
    for name, tensor in facts.tensors.items():
        if match := naming.layer.fullmatch(name):
            stack = stacks.setdefault(match["prefix"], {})
            stack.setdefault(int(match["number"]), {})[match["rest"]] = tensor
    prefix = max(stacks, key=lambda one: len(stacks[one]), default="")
    return ModelView(facts, text_config(facts.config), naming, prefix, stacks.get(prefix, {}))


def without_expert(name: str) -> str:
    """Return a tensor's name with the number of an expert left out."""
    return re.sub(r"\bexperts\.\d+\.", "experts.*.", name)
