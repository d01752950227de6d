"""Read what a server has loaded and what the files hold, and compare both."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import httpx

from rules.model_facts import ModelFacts
from rules.model_hash import gpu_checksum
from rules.model_loaded import Comparison, comparable, compare
from tasks import sglang
from tasks.model_digest import tensor_checksums
from tasks.model_reading import read_header
from tasks.sglang import ModelServer, ModelServerError

#: Beyond this the server's checksums of its large matrices are not asked for: meanwhile it answers nobody.
_QUICK_BYTES = 1 << 30
_MATRICES = ("_proj", "experts.", "lm_head", "mlp.", "feed_forward.")
#: A GPU's kind of checksum takes half a second for so many bytes here.
_SMALL_BYTES = 1 << 20


def compare_with_files(server: ModelServer, facts: ModelFacts, directory: Path, *, dtype: str) -> Comparison:
    """Compare the tensors in a server's memory with the files in `directory`.

    Args:
        server: whom to ask.
        facts: what was read of the model.
        directory: the model, on this machine.
        dtype: the server's flag, or auto.

    Raises:
        ModelServerError: the server wants a key, or does not answer.
        ModelArtefactError: the files cannot be read.
    """
    if facts.format != "safetensors":
        return Comparison(why_not="a server unpacks GGUF into tensors of its own")
    without = _MATRICES if facts.weights_bytes > _QUICK_BYTES else ()
    try:
        ranks = sglang.weight_checksums(server, without=without)
    except ModelServerError as error:
        if error.status != httpx.codes.BAD_REQUEST:
            raise
        return Comparison(why_not=f"the server cannot compute them: {error.words}")
    if ranks is None:
        return Comparison(why_not="this server has no route for them")
    names = comparable(ranks, facts, dtype=dtype)
    if sglang.server_info(server).device.startswith("cuda"):
        in_file = _gpu_checksums(directory, facts, names)
    else:
        in_file = tensor_checksums(directory, names) if names else {}
    return compare(ranks, in_file, facts.tensors.keys())


def _gpu_checksums(directory: Path, facts: ModelFacts, names: Collection[str]) -> dict[str, str]:
    """Return the checksums of the small tensors among `names`, as a server has them on a GPU."""
    found = {}
    for shard in sorted({facts.tensors[name].shard for name in names}):
        path = directory / shard
        entries = read_header(path)
        with path.open("rb") as file:
            for name in sorted(set(names) & entries.keys()):
                start, size_bytes = entries[name].start, entries[name].end - entries[name].start
                if size_bytes <= _SMALL_BYTES:
                    file.seek(start)
                    found[name] = gpu_checksum(file.read(size_bytes))
    return found
