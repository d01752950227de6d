"""The simulated SGLang's engine: loads weights, answers requests at a pace, pauses, and swaps its weights."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lab.model_weights import Tensors
from lab.sglang_speech import Speaker, Tokenizer
from lab.sglang_vram import claim_vram, release_vram
from lab.sglang_weights import CorruptWeightsError, fitted, read_model

#: What beside the model's files says how it is served: see `lab.model.ModelBehaviour`.
_BEHAVIOUR_FILE = "lab-behaviour.json"
_CHECKSUM_LETTERS = 16
#: Who waits is woken by pausing, aborting and the last request's end: looking now and then is simpler.
_POLL_S = 0.01
_EOS = 1
#: Which tensors the real server loads as one, in this order.
_FUSED = (
    (".q_proj.", ".qkv_proj."),
    (".k_proj.", ".qkv_proj."),
    (".v_proj.", ".qkv_proj."),
    (".gate_proj.", ".gate_up_proj."),
    (".up_proj.", ".gate_up_proj."),
)


@dataclasses.dataclass(frozen=True)
class Pace:
    """How this server works, whatever its model: seconds, tokens and MiB.

    Attributes:
        load_s: how long loading takes.
        warm_up_s: how long it listens before it is ready.
        first_token_s: from a request to its first token.
        tokens_per_s: after that, for each request.
        health_s: how long `/health` takes, which the real server answers with a token.
        stop_s: how long it lingers after SIGTERM when nothing runs.
        vram_mib: what the weights take of the GPU, where there is one.
    """

    load_s: float = 0.1
    warm_up_s: float = 0.1
    first_token_s: float = 0.01
    tokens_per_s: float = 500.0
    health_s: float = 1.0
    stop_s: float = 0.2
    vram_mib: int = 1024
    never_ready: bool = False
    fails_to_start: bool = False
    dies_after_s: float = 0.0
    wrong_version: bool = False
    error_ratio: float = 0.0

    @classmethod
    def of(cls, model: Path) -> Pace:
        """Return what `LAB_SGLANG`, JSON in the environment, and then the model itself say."""
        said: dict[str, Any] = json.loads(os.environ.get("LAB_SGLANG", "{}"))
        with contextlib.suppress(OSError):
            said |= json.loads((model / _BEHAVIOUR_FILE).read_text())
        return cls(**said)


@dataclasses.dataclass
class Request:
    """One that is being answered; `aborted`: it is to end at its next token."""

    id: str
    began: float = dataclasses.field(default_factory=time.monotonic)
    tokens: list[int] = dataclasses.field(default_factory=list)
    versions: list[str] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    first_token_s: float = 0.0
    aborted: bool = False

    def spans(self) -> list[dict[str, object]]:
        """Return which tokens come from which weights."""
        spans: list[dict[str, object]] = []
        for at, version in enumerate(self.versions):
            if not spans or spans[-1]["version"] != version:
                spans.append({"version": version, "start": at, "end": at})
            spans[-1]["end"] = at + 1
        return spans


@dataclasses.dataclass
class Counts:
    """What has been answered so far, in tokens and seconds."""

    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    first_token_s: float = 0.0
    latency_s: float = 0.0

    def add(self, request: Request) -> None:
        """Count a request that has ended."""
        self.requests += 1
        self.prompt_tokens += request.prompt_tokens
        self.tokens += len(request.tokens)
        self.first_token_s += request.first_token_s
        self.latency_s += time.monotonic() - request.began


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer so far; `finished` is None while more follows."""

    request: Request
    text: str
    finished: dict[str, object] | None


def die() -> NoReturn:
    """End as the real server does when its scheduler dies: killed, with nothing said to anybody."""
    release_vram()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Engine:
    """The weights that are loaded and the requests that run on them.

    Args:
        model: the model's directory.
        version: the weight version that it says at first.
        most_running: how many requests are answered at once; others wait.
    """

    def __init__(self, model: Path, version: str, *, most_running: int) -> None:
        self.path, self.version = str(model), version
        self.pace = Pace.of(model)
        self.config: dict[str, Any] = (
            json.loads((model / "config.json").read_text()) if model.is_dir() else {}
        )
        self.tensors: Tensors = {}
        self.paused = False
        self.running: dict[str, Request] = {}
        self.waiting = 0
        self.counts = {False: Counts(), True: Counts()}  # plain answers, and streams
        self._slots = asyncio.Semaphore(most_running)
        self._updating = asyncio.Lock()
        self._open = 0
        self._chance = random.Random(self.path)
        self._tokenizer: Tokenizer | None = None
        self._speaker = Speaker({})

    def load(self) -> None:
        """Load the weights and the tokenizer.

        Raises:
            CorruptWeightsError: a file is not whole, or a shape is not the configuration's.
            NoModelError: there are no weights.
            OSError, ValueError: the tokenizer is missing or broken.
        """
        path = Path(self.path)
        if path.is_dir():
            self._tokenizer = Tokenizer(path / "tokenizer.json")
        self._take(fitted(read_model(path), self.config))

    def checksums(self, without: Sequence[str] = ()) -> dict[str, str]:
        """Return for each loaded tensor the beginning of its bytes' SHA-256; some are loaded as one.

        Those with one of `without` in their name are left out.
        """
        fused: dict[str, bytes] = {}
        for name, (_, _, data) in self.tensors.items():
            into = next((name.replace(part, whole) for part, whole in _FUSED if part in name), name)
            fused[into] = fused.get(into, b"") + data
        return {
            name: hashlib.sha256(data).hexdigest()[:_CHECKSUM_LETTERS]
            for name, data in fused.items()
            if not any(part in name for part in without)
        }

    def used_tokens(self) -> int:
        """Return how many tokens the running requests hold."""
        return sum(request.prompt_tokens + len(request.tokens) for request in self.running.values())

    def weights_bytes(self) -> int:
        """Return how large the loaded weights are."""
        return sum(len(data) for _, _, data in self.tensors.values())

    def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self._encode(text))

    async def generate(
        self,
        text: str,
        most_tokens: int,
        *,
        ignore_eos: bool = False,
        streamed: bool = False,
        id_: str | None = None,
    ) -> AsyncIterator[Said]:
        """Yield an answer as it grows, once for each token."""
        async with self._updating:  # a swap that waits for its turn comes before new requests
            self._open += 1
        request = Request(id_ or uuid.uuid4().hex)
        self.waiting += 1
        try:
            async with self._slots:
                self.waiting -= 1
                self.running[request.id] = request
                async for said in self._speak(
                    request, self._encode(text), most_tokens, ignore_eos=ignore_eos
                ):
                    yield said
        finally:
            self._open -= 1
            if self.running.pop(request.id, None) is None:
                self.waiting -= 1
            self.counts[streamed].add(request)

    async def swap(self, path: Path, version: str | None) -> None:
        """Take other weights once no request runs, or at once while paused; the tokenizer stays.

        A tensor that the new files lack keeps its old bytes. A file that is not whole, or a shape that is not
        the running model's, ends the process.

        Raises:
            NoModelError: there is nothing at `path`; the weights are the old ones.
        """
        async with self._updating:
            while self._open and not self.paused:  # noqa: ASYNC110 - see _POLL_S
                await asyncio.sleep(_POLL_S)
            try:
                new = fitted(read_model(path), self.config)
            except CorruptWeightsError:
                die()
            self.pace = Pace.of(path)
            self._take({**self.tensors, **new})
            self.path = str(path)
            if version is not None:
                self.version = version

    def abort(self, id_: str | None) -> None:
        """End the request of this id at its next token; None: all of them."""
        for request in self.running.values():
            request.aborted |= id_ in (None, request.id)

    def fails(self) -> bool:
        """Return by chance whether the next request is to fail."""
        return self._chance.random() < self.pace.error_ratio

    def _take(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self._speaker = Speaker(tensors)
        claim_vram(self.pace.vram_mib)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text) if self._tokenizer else list(text.encode())

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens) if self._tokenizer else " ".join(map(str, tokens))

    async def _speak(
        self, request: Request, prompt: list[int], most_tokens: int, *, ignore_eos: bool
    ) -> AsyncIterator[Said]:
        request.prompt_tokens = len(prompt)
        token = (prompt or [0])[-1]
        finished: dict[str, object] | None = None
        await asyncio.sleep(self.pace.first_token_s)
        request.first_token_s = time.monotonic() - request.began
        while finished is None:
            while self.paused and not request.aborted:  # noqa: ASYNC110 - see _POLL_S
                await asyncio.sleep(_POLL_S)
            if request.aborted:
                finished = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
            else:
                token = self._speaker.after(token)
                request.tokens.append(token)
                request.versions.append(self.version)
                finished = _finish(request, most_tokens, ignore_eos=ignore_eos)
            yield Said(request, self._decode(request.tokens), finished)
            if finished is None:
                await asyncio.sleep(1 / self.pace.tokens_per_s)


def _finish(request: Request, most_tokens: int, *, ignore_eos: bool) -> dict[str, object] | None:
    if request.tokens[-1] == _EOS and not ignore_eos:
        return {"type": "stop", "matched": _EOS}
    return {"type": "length", "length": most_tokens} if len(request.tokens) >= most_tokens else None
