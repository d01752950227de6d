"""The contract with an SGLang server: how one is asked, and the list that `lab.sglang_probe` fills."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from lab.contract import ContractError, expect
from lab.model import ANSWERS, make_model
from lab.model_weights import Tensors, read_tensors
from lab.sglang_speech import Speaker, Tokenizer

PROMPT, ANSWER = next(iter(ANSWERS.items()))
#: To which each seed says something else, and never comes to an end.
FREE_PROMPT = "Hello"

_TIMEOUT_S = 60.0
_LONG_TOKENS = 600
_SOON_S = 20.0
_POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Contract:
    """One running server, and models to give it.

    Attributes:
        url: where it answers, without a path.
        model: what it was started on, as the path that it was told.
        version: the weight version it was started with.
        scratch: where models are made.
        admin_key: what its admin routes want; empty: they want nothing.
    """

    url: str
    model: Path
    version: str
    scratch: Path
    admin_key: str = ""

    def get(self, path: str, *, timeout_s: float = _TIMEOUT_S) -> httpx.Response:
        """Ask for a path."""
        return client().get(f"{self.url}{path}", timeout=timeout_s)

    def post(self, path: str, body: object, *, timeout_s: float = _TIMEOUT_S) -> httpx.Response:
        """Send JSON, with the admin key where there is one."""
        headers = {"Authorization": f"Bearer {self.admin_key}"} if self.admin_key else {}
        return client().post(f"{self.url}{path}", json=body, headers=headers, timeout=timeout_s)

    def say(self, text: str = PROMPT, tokens: int = 16, **more: object) -> dict[str, Any]:
        """Have a prompt answered greedily and return the answer."""
        sampling = {"temperature": 0, "max_new_tokens": tokens, **more}
        answer = self.post("/generate", {"text": text, "sampling_params": sampling})
        expect(answer.status_code == httpx.codes.OK, "a prompt is answered 200", answer.text)
        said: dict[str, Any] = answer.json()
        return said

    def info(self) -> dict[str, Any]:
        """Return what it says of its model."""
        info: dict[str, Any] = self.get("/model_info").json()
        return info

    def checksums(self, **more: object) -> dict[str, str]:
        """Return what it has loaded."""
        answer = self.post("/weights_checker", {"action": "checksum", **more}).json()
        return {name: value for rank in answer["ranks"] for name, value in rank["checksums"].items()}

    def swap(self, model: Path, version: str | None = None, **more: object) -> httpx.Response:
        """Have it load other weights."""
        named = {} if version is None else {"weight_version": version}
        return self.post("/update_weights_from_disk", {"model_path": str(model), **named, **more})

    def other(self, seed: int = 2) -> Path:
        """Return another model of the same shape, which says otherwise to a free prompt."""
        directory = self.scratch / f"seed-{seed}"
        return directory if directory.exists() else make_model(directory, seed=seed)

    def running(self) -> int:
        """Return how many requests it says are running."""
        return sum(int(rank["num_running_reqs"]) for rank in self.get("/v1/loads").json()["loads"])

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Give it back its first weights and version afterwards."""
        try:
            yield
        finally:
            self.post("/continue_generation", {})
            restored = self.swap(self.model, self.version)
        expect(restored.json().get("success"), "the first weights are loaded again", restored.text)

    @contextlib.contextmanager
    def busy(self, tokens: int = _LONG_TOKENS) -> Iterator[Asking]:
        """Have a long answer under way; it has ended when this does."""
        asking = Asking(lambda: self.say(FREE_PROMPT, tokens, ignore_eos=True))
        try:
            wait(lambda: self.running() > 0 or asking.is_over(), "a long answer is seen to run")
            yield asking
        finally:
            asking.join()


class Asking:
    """A request in a thread of its own."""

    def __init__(self, ask: Callable[[], dict[str, Any]]) -> None:
        self._answers: list[dict[str, Any] | BaseException] = []
        self._ask = ask
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_over(self) -> bool:
        """Return whether it has ended, in whatever way."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(2 * _TIMEOUT_S)

    def answer(self) -> dict[str, Any]:
        """Wait for the answer and return it."""
        self.join()
        expect(len(self._answers) == 1, "a request ends in time", "it hangs")
        answer = self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _run(self) -> None:
        try:
            self._answers.append(self._ask())
        except (ContractError, httpx.HTTPError) as error:
            self._answers.append(error)


Check = Callable[[Contract], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Add a check to the list, by its name."""
    CHECKS[function.__name__] = function
    return function


def wait(condition: Callable[[], object], what: str, timeout_s: float = _SOON_S) -> None:
    """Wait until something holds.

    Raises:
        ContractError: it did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        expect(time.monotonic() < deadline, what, f"nothing of it in {timeout_s:g} s")
        time.sleep(_POLL_S)


def checksums_of(tensors: Tensors) -> dict[str, str]:
    """Return what a server that loaded these tensors has to say; some are loaded as one."""
    joined: dict[str, bytes] = {}
    for name, (_, _, data) in tensors.items():
        loaded = re.sub(r"\.[qkv]_proj\.", ".qkv_proj.", name)
        loaded = re.sub(r"\.(gate|up)_proj\.", ".gate_up_proj.", loaded)
        joined[loaded] = joined.get(loaded, b"") + data
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in joined.items()}


def foretold(model: Path, prompt: str, tokens: int) -> str:
    """Return what a model of `lab.model` says to a prompt that it has no answer to."""
    tokenizer = Tokenizer(model / "tokenizer.json")
    speaker = Speaker(read_tensors(model / "model.safetensors"))
    said = [tokenizer.encode(prompt)[-1]]
    for _ in range(tokens):
        said.append(speaker.after(said[-1]))
    return tokenizer.decode(said[1:])


@functools.cache
def client() -> httpx.Client:
    """Return one client, since making it costs more than asking; it keeps no connection that may be dead."""
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
