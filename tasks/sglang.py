"""One SGLang server by its HTTP API: what it has loaded, how busy it is, and other weights for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import Field

from rules.errors import InvalidRequestError
from rules.fleet import Instance, Probe
from rules.frozen import Count, Frozen
from rules.model_loaded import RankChecksums
from rules.serving import ModelServing
from tasks.http_client import http
from tasks.sglang_http import ModelServer, ModelServerError, ModelServerGoneError, json_of, send, understood
from tasks.sglang_stream import generate

__all__ = [
    "Loads",
    "ModelInfo",
    "ModelServer",
    "ModelServerError",
    "ModelServerGoneError",
    "ServerInfo",
    "generate",
    "is_ready",
    "loads",
    "memory_metrics",
    "model_info",
    "root_url",
    "served_models",
    "server_info",
    "server_of",
    "update_weights",
    "weight_checksums",
]

#: Waiting for a checksum of all tensors, which the server computes between two requests.
_CHECKSUM_TIMEOUT_S = 300.0
#: Of a start, the whole first, and the longest part of it where nothing else is told.
_STARTED = ("tokenizer_e2e", "scheduler_e2e", "load_weight")
_NO_ROUTE = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)


class ModelInfo(Frozen):
    """Which model a server says that it has loaded."""

    model_path: str
    served_model_name: str
    weight_version: str
    architectures: tuple[str, ...] = Field(default=(), description="empty: it does not say")


class Loads(Frozen):
    """How many requests a server has, summed over its data-parallel ranks."""

    running: Count
    waiting: Count

    @property
    def idle(self) -> bool:
        """Whether it has none at all."""
        return not (self.running or self.waiting)


class ServerInfo(Frozen):
    """How a server was started; None or empty: it does not say."""

    start_s: float | None = Field(default=None, description="seconds its last start took")
    device: str = ""
    version: str = ""


def server_of(instance: Instance, serving: ModelServing) -> ModelServer:
    """Return where the model server of an instance is asked: at the root of its probe's URL.

    Raises:
        InvalidRequestError: the instance is a node of a Ray cluster.
    """
    return ModelServer(url=root_url(instance), admin_key_file=serving.admin_key_file)


def root_url(instance: Instance) -> str:
    """Return the URL of an instance's server, without a path and without a slash at its end.

    Raises:
        InvalidRequestError: the instance is a node of a Ray cluster.
    """
    if not isinstance(instance.probe, Probe):
        raise InvalidRequestError(f"{instance.name} is asked by a cluster, so it serves no model")
    return str(httpx.URL(instance.probe.url).join("/")).rstrip("/")


# --- reads -----------------------------------------------------------------------------------------


def model_info(server: ModelServer) -> ModelInfo:
    """Return which model the server has loaded, by its own word.

    Raises:
        ModelServerError: it does not say.
    """
    url, said = _said(server, "GET", "/model_info")
    with understood(url, said):
        return ModelInfo(
            model_path=said["model_path"],
            served_model_name=said["served_model_name"],
            weight_version=str(said["weight_version"]),
            architectures=tuple(said.get("architectures") or ()),
        )


def served_models(server: ModelServer) -> tuple[str, ...]:
    """Return the names that clients may ask for; adapters (LoRA) among them.

    Raises:
        ModelServerError: it does not say.
    """
    url, said = _said(server, "GET", "/v1/models")
    with understood(url, said):
        return tuple(str(model["id"]) for model in said["data"])


def is_ready(server: ModelServer) -> bool:
    """Return whether the server says that it takes requests; one that cannot be reached does not.

    This is /ready, which answers at once: /health generates a token and takes a second, or twenty while
    the server is paused.
    """
    try:
        return http().get(f"{server.url}/ready", timeout=server.timeout_s).is_success
    except httpx.HTTPError:
        return False


def loads(server: ModelServer) -> Loads:
    """Return how many requests run and wait.

    Raises:
        ModelServerError: it does not say.
    """
    url, said = _said(server, "GET", "/v1/loads")
    with understood(url, said):
        ranks = said["loads"]
        return Loads(
            running=sum(rank["num_running_reqs"] for rank in ranks),
            waiting=sum(rank["num_waiting_reqs"] for rank in ranks),
        )


def server_info(server: ModelServer) -> ServerInfo:
    """Return how the server was started, as far as it says so.

    Raises:
        ModelServerError: no answer.
    """
    url, said = _said(server, "GET", "/server_info")
    # nothing of it is shown: among all flags it has the server's admin key
    with understood(url, "something else than an SGLang server's flags"):
        took = said.get("startup_time") or {}
        start_s = next((took[part] for part in _STARTED if part in took), None)
        return ServerInfo(
            start_s=None if start_s is None else float(start_s),
            device=str(said.get("device") or ""),
            version=str(said.get("version") or ""),
        )


def memory_metrics(server: ModelServer) -> dict[str, float]:
    """Return the server's own figures of memory, such as weight_memory_usage_gb; empty: it shows no metrics.

    Summed over ranks and kinds of graph.

    Raises:
        ModelServerError: no answer.
    """
    answer = send(server, "GET", "/metrics")
    found: dict[str, float] = {}
    for line in answer.text.splitlines() if answer.is_success else ():
        name, _, value = line.replace("{", " {", 1).partition(" ")
        kind = name.removeprefix("sglang:")
        if name.startswith("sglang:") and kind.endswith("_memory_usage_gb"):
            found[kind] = found.get(kind, 0.0) + float(value.rsplit(maxsplit=1)[-1])
    return found


def weight_checksums(
    server: ModelServer, *, without: tuple[str, ...] = ()
) -> tuple[RankChecksums, ...] | None:
    """Return what each rank has in its memory; None: this server cannot tell.

    Args:
        server: whom to ask; it answers no other request in the meantime.
        without: parts of tensors' names that are left out.

    Raises:
        ModelServerError: it was asked without its key, or could not compute them.
    """
    body: dict[str, Any] = {"action": "checksum"}
    if without:
        body["skip_tensor_list"] = list(without)
    answer = send(server, "POST", "/weights_checker", body=body, admin=True, timeout_s=_CHECKSUM_TIMEOUT_S)
    if answer.status_code in _NO_ROUTE:
        return None
    said = json_of(answer)
    with understood(str(answer.url), said):
        ranks = said.get("ranks")
        return None if ranks is None else tuple(_rank(rank) for rank in ranks)


def _rank(rank: Mapping[str, Any]) -> RankChecksums:
    # one entry for each model that the rank runs: the model itself, and a draft for speculative decoding
    parallel = rank.get("parallelism_info") or ()
    tp_size = max((int(one["tp_size"]) for one in parallel), default=1)
    return RankChecksums(tp_size=tp_size, checksums=rank["checksums"])


# --- effects ---------------------------------------------------------------------------------------


def update_weights(server: ModelServer, *, model_path: str, release: str, timeout_s: float) -> str:
    """Load the weights at `model_path` into the running server, and name them `release`; return its words.

    It waits for the requests that run; those that come in the meantime wait for it. Broken off, it may
    still happen: the server goes on by itself.

    Raises:
        ModelServerGoneError: the server ended: it does so when the files are not sound.
        ModelServerError: it refused, or took longer than `timeout_s`.
    """
    body = {"model_path": model_path, "weight_version": release}
    answer = send(server, "POST", "/update_weights_from_disk", body=body, admin=True, timeout_s=timeout_s)
    said = json_of(answer)
    with understood(str(answer.url), said):
        if said["success"] is True:
            return str(said.get("message", ""))
    raise ModelServerError(
        str(answer.url),
        answer.status_code,
        str(said),
        advice="The weights may be partly replaced: restart it.",
    )


def _said(server: ModelServer, method: str, path: str) -> tuple[str, Any]:
    answer = send(server, method, path)
    return str(answer.url), json_of(answer)
