"""A model's directory on this machine: what it holds, its digest, and whether it may be deployed.

Reading looks at headers and small files only, so it is quick for hundreds of gigabytes; what sums up reads
it all.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rules.model_artefact import faults
from rules.model_facts import ModelFacts, Tensor, layer_count, number, text_config, token_ids
from tasks.model_digest import digest, file_digest, tensor_checksums
from tasks.model_reading import Entry, ModelArtefactError, all_files, read_header, read_index, read_json
from tasks.tokenizer_files import read_tokenizer

__all__ = ["ModelArtefactError", "digest", "read_model", "tensor_checksums", "validated"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
#: Weights in the naming of one vendor's own server, beside the same weights for all others.
_OTHER_NAMING = "consolidated"
#: What a server may read when it starts, beside weights and the two configurations that are compared by key.
_READ_ONCE = re.compile(
    r"(?!(generation_)?config\.json$|.*\.index\.json$)"
    r"(.*(token|config|processor|template|vocab).*\.(json|txt|jinja)|merges\.txt|tekken\.json"
    r"|.*\.(py|jinja|model|tiktoken))"
)


# --- what it holds ---------------------------------------------------------------------------------


def read_model(directory: Path) -> ModelFacts:
    """Return what a model's directory holds; no tensor is read.

    Raises:
        ModelArtefactError: it holds no weights, weights that are code (pickle), or a file that cannot be
            read: truncated, with a broken header, or no JSON.
    """
    if not directory.is_dir():
        raise ModelArtefactError(f"{directory} is no directory on the worker's host. Nothing was touched.")
    entries = list(all_files(directory))
    _refuse_pickles(directory, [name for name, _ in entries])
    size = sum(state.st_size for _, state in entries if stat.S_ISREG(state.st_mode))
    gguf, safetensors = (
        sorted(path for path in directory.glob(f"*{suffix}") if path.is_file())
        for suffix in (".gguf", ".safetensors")
    )
    about = {"size_bytes": size, "files": _read_once(directory, [name for name, _ in entries])}
    if gguf and not safetensors:
        return _gguf_facts(directory, gguf, about)
    if safetensors and not gguf:
        return _safetensors_facts(directory, safetensors, about)
    found = "both safetensors and GGUF" if gguf else "neither *.safetensors nor a *.gguf"
    raise ModelArtefactError(
        f"{directory} holds {found}: it must hold one kind of weights. Nothing was touched."
    )


def _refuse_pickles(directory: Path, names: Iterable[str]) -> None:
    if pickles := sorted(name for name in names if name.lower().endswith(_PICKLES)):
        raise ModelArtefactError(
            f"{directory} holds {', '.join(pickles[:5])}: loading a pickle runs whatever code is in it. "
            "Nothing was touched. Convert the weights to safetensors, or remove these files where "
            "safetensors are there already."
        )


def _gguf_facts(directory: Path, files: list[Path], about: dict[str, Any]) -> ModelFacts:
    from tasks.gguf_file import read_gguf  # noqa: PLC0415  # it takes a second to import, and few need it

    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ModelArtefactError(
            f"{directory} holds several GGUF files ({names}); a server loads one. Nothing was touched. Keep "
            "one; parts of one model are joined by llama-gguf-split --merge."
        )
    found = read_gguf(files[0])
    eos, bos = (token_ids(key, found.config) for key in ("eos_token_id", "bos_token_id"))
    return ModelFacts(
        format="gguf",
        architectures=(found.architecture,) if found.architecture else (),
        model_type=str(found.config["model_type"]),
        vocab_size=number(found.config, "vocab_size"),
        hidden_size=number(found.config, "hidden_size"),
        layers=layer_count(found.config),
        config=found.config,
        tensors=found.tensors,
        shards=(files[0].name,),
        tokenizer=read_tokenizer(directory, (*eos, *bos)) or found.tokenizer,
        eos_ids=eos,
        bos_ids=bos,
        quantization=found.quantization,
        weights_bytes=found.weights_bytes,
        **about,
    )


def _safetensors_facts(directory: Path, files: list[Path], about: dict[str, Any]) -> ModelFacts:
    config, generation = (read_json(directory / name) for name in ("config.json", "generation_config.json"))
    if not config:
        raise ModelArtefactError(f"{directory}/config.json is not there, or empty. Nothing was touched.")
    index = read_index(directory)
    if index is not None:
        files = [file for file in files if file.name in index.values() or _counts(file)]
    headers = {file.name: read_header(file) for file in files}
    text = text_config(config)
    eos, bos = (token_ids(key, config, text, generation) for key in ("eos_token_id", "bos_token_id"))
    architectures = config.get("architectures")
    return ModelFacts(
        format="safetensors",
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        model_type=str(text.get("model_type") or config.get("model_type") or ""),
        vocab_size=number(text, "vocab_size") or number(config, "vocab_size"),
        hidden_size=number(text, "hidden_size"),
        layers=layer_count(text),
        config=config,
        generation=generation,
        tensors=_tensors(headers),
        shards=tuple(headers),
        repeated=_repeated(headers),
        index=index,
        tokenizer=read_tokenizer(directory, (*eos, *bos)),
        eos_ids=eos,
        bos_ids=bos,
        quantization=_quantization(directory, config, text),
        weights_bytes=sum(entry.end - entry.start for held in headers.values() for entry in held.values()),
        **about,
    )


def _counts(file: Path) -> bool:
    """Return whether weights that the index does not name are an error."""
    return not file.name.startswith(_OTHER_NAMING)


def _tensors(headers: dict[str, dict[str, Entry]]) -> dict[str, Tensor]:
    return {
        name: Tensor(dtype=entry.dtype, shape=entry.shape, shard=shard)
        for shard, held in headers.items()
        for name, entry in held.items()
    }


def _repeated(headers: dict[str, dict[str, Entry]]) -> dict[str, tuple[str, ...]]:
    where: dict[str, list[str]] = {}
    for shard, held in headers.items():
        for name in held:
            where.setdefault(name, []).append(shard)
    return {name: tuple(shards) for name, shards in where.items() if len(shards) > 1}


def _quantization(directory: Path, *configs: Any) -> str:
    for config in configs:
        for key in ("quantization_config", "compression_config"):
            if isinstance(found := config.get(key), dict) and found:
                return str(found.get("quant_method") or found.get("format") or "unknown").lower()
    beside = read_json(directory / "hf_quant_config.json").get("quantization")
    return f"modelopt {beside.get('quant_algo')}".lower() if isinstance(beside, dict) else ""


def _read_once(directory: Path, names: Iterable[str]) -> dict[str, str]:
    kept = sorted(name for name in names if _READ_ONCE.fullmatch(name))
    return {name: file_digest(directory / name) for name in kept if (directory / name).is_file()}


# --- may it be deployed ----------------------------------------------------------------------------


def validated(directory: Path, sha256: str) -> ModelFacts:
    """Return what a model's directory holds, with its digest, once nothing is found wrong with it.

    Raises:
        ModelArtefactError: the digest is another one, or something is wrong; lists everything.
    """
    found: list[str] = []
    facts = None
    try:
        facts = read_model(directory)
        found.extend(faults(facts))
    except ModelArtefactError as error:
        found.append(str(error))
    try:
        summed = digest(directory) if directory.is_dir() else sha256
    except ModelArtefactError as error:
        summed = ""
        found.append(str(error))
    if summed and summed != sha256:
        found.append(
            f"Its digest is {summed}, declared was {sha256}: files are missing, changed or too many. Copy "
            "the model once more, or declare what it is now."
        )
    if found or facts is None:
        reasons = "\n".join(f"- {one}" for one in found)
        raise ModelArtefactError(
            f"The model in {directory} cannot be deployed; nothing was touched:\n{reasons}"
        )
    return facts.model_copy(update={"sha256": summed})
