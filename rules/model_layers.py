"""Are a model's layers complete: as many as its configuration says, and each with all of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rules.model_facts import Tensor, listed, number
from rules.model_names import ALSO_REQUIRED, BY_CONFIG, HUGGING_FACE, MIXED, TOLD_APART
from rules.model_shapes import expert_count
from rules.model_view import ModelView, without_expert

_EXPERT = re.compile(r"(?P<module>.*\bexperts)\.(?P<number>\d+)\.(?P<rest>.+)")
#: Methods that pack a weight into several tensors, always the same ones.
_PACKING = ("awq", "gptq")
#: A configuration that says more says nonsense.
_MOST = 100_000
_AGAIN = "Copy the model once more."


def layer_faults(model: ModelView) -> Iterator[str]:
    """Find layers, tensors of layers and experts that are missing."""
    yield from _count_faults(model)
    yield from _expert_faults(model)
    if model.is_known:
        yield from _known_faults(model)
    if model.family in TOLD_APART:
        yield from _lacking(model)


def layer_doubts(model: ModelView) -> Iterator[str]:
    """Find layers that have less than others in a family where it is not known whether that is meant."""
    if not model.is_known and model.family not in TOLD_APART:
        yield from _lacking(model)
        yield from _surplus_layers(model)


# --- how many --------------------------------------------------------------------------------------


def _count_faults(model: ModelView) -> Iterator[str]:
    count = model.facts.layers
    # of those some layers may have been left out
    if count is None or "block_configs" in model.text or model.family == "deci":
        return
    if not model.stack:
        if model.is_known:
            yield f"config.json says {count} layers; no tensor has the usual name of one."
        return
    if missing := [n for n in range(min(count, _MOST)) if n not in model.stack]:
        names = listed([model.name_of(layer) for layer in missing])
        yield f"Layers are missing: {names} of the {count} that config.json says. {_AGAIN}"
    if model.is_known:
        yield from _surplus_layers(model)


def _surplus_layers(model: ModelView) -> Iterator[str]:
    count = model.facts.layers
    if count is None:
        return
    further = number(model.text, "num_nextn_predict_layers") or 0
    if surplus := [model.name_of(layer) for layer in model.stack if layer >= count + further]:
        yield (
            f"The weights hold {listed(surplus)}, but config.json says {count} layers. Take configuration "
            "and weights of one and the same model."
        )


# --- each like the others --------------------------------------------------------------------------


def _lacking(model: ModelView) -> Iterator[str]:
    """Find layers that have what others have, but not all of it: two kinds of layers differ both ways."""
    kinds: dict[frozenset[str], list[str]] = {}
    for layer, names in model.layers.items():
        kinds.setdefault(frozenset(_signature(model, names)), []).append(model.name_of(layer))
    for kind, members in kinds.items():
        if fuller := max((other for other in kinds if kind < other), key=len, default=None):
            yield (
                f"{listed(members)}: {listed(fuller - kind)} missing, which {listed(kinds[fuller])} has. "
                f"{_AGAIN}"
            )


def _signature(model: ModelView, names: Mapping[str, Tensor]) -> set[str]:
    """Return what layers have in common; some quantizations leave some layers alone, so only modules."""
    plain = {without_expert(name) for name in names}
    if not model.is_packed:
        return plain
    # bitsandbytes puts its own parts below the weight: mlp.up_proj.weight.absmax
    return {re.sub(r"\.weight\..*", ".weight", name).rpartition(".")[0] for name in plain}


def _known_faults(model: ModelView) -> Iterator[str]:
    every = {name for names in model.layers.values() for name in _signature(model, names)}
    for layer, names in model.layers.items():
        have = _signature(model, names)
        missing = set(_missing(model, have, every))
        if model.family not in MIXED and not model.is_packed:
            missing |= every - have
        for name in sorted(missing):
            yield f"Tensor {model.name_of(layer)}.{name} is missing. {_AGAIN}"
        if model.facts.quantization in _PACKING:
            yield from _half_packed(model.name_of(layer), names)


def _missing(model: ModelView, have: set[str], every: set[str]) -> Iterator[str]:
    """Find what each layer of the family has, or the configuration asks for."""
    also = ALSO_REQUIRED.get(model.family, ()) if model.naming is HUGGING_FACE else ()
    asked = (
        name
        for key, (families, names) in BY_CONFIG.items()
        if model.family in families and model.text.get(key) is True
        for name in names
    )
    for names in (*model.naming.required, *((name,) for name in (*also, *asked))):
        found = [name.rpartition(".")[0] for name in names] if model.is_packed else names
        if not have.intersection(found):
            yield next((name for name in found if name in every), found[0])


def _half_packed(where: str, names: Mapping[str, Tensor]) -> Iterator[str]:
    """Find modules that lack one of the tensors that a packed weight is made of."""
    parts: dict[str, set[str]] = {}
    for name in names:
        module, _, part = name.rpartition(".")
        parts.setdefault(module, set()).add(part)
    packed = {module: those - {"bias"} for module, those in parts.items() if "weight" not in those}
    whole = max(packed.values(), key=len, default=set())
    for module, those in sorted(packed.items()):
        if those < whole:
            yield f"{where}.{module}: {listed(whole - those)} missing: it cannot be unpacked. {_AGAIN}"


# --- experts ---------------------------------------------------------------------------------------


def _expert_faults(model: ModelView) -> Iterator[str]:
    for layer, names in model.layers.items():
        modules: dict[str, dict[int, set[str]]] = {}
        for match in filter(None, map(_EXPERT.fullmatch, names)):
            experts = modules.setdefault(match["module"], {})
            experts.setdefault(int(match["number"]), set()).add(match["rest"])
        for module, experts in modules.items():
            yield from _uneven(model, f"{model.name_of(layer)}.{module}", experts)


def _uneven(model: ModelView, where: str, experts: Mapping[int, set[str]]) -> Iterator[str]:
    count = expert_count(model.text) or max(experts) + 1
    if missing := [str(n) for n in range(min(count, _MOST)) if n not in experts]:
        yield f"Experts are missing in {where}: {listed(missing)} of {count}. {_AGAIN}"
    whole = {name for names in experts.values() for name in names}
    for expert, names in sorted(experts.items()):
        if names != whole and not model.is_packed:
            yield f"{where}.{expert}: {listed(whole - names)} missing, which other experts have. {_AGAIN}"
