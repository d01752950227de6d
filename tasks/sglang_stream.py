"""A prompt answered by an SGLang server, as a stream, and measured."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rules.serving import Answered, DeclaredPrompt
from tasks.http_client import http
from tasks.sglang_http import ModelServer, ModelServerError, ModelServerGoneError, reached, refuse, understood

#: Fewer tokens after the first say nothing of the speed.
_LEAST_TOKENS = 4
_LEAST_S = 0.001


def generate(server: ModelServer, prompt: DeclaredPrompt, *, timeout_s: float) -> Answered:
    """Have a prompt answered greedily, as a stream, and measure it.

    Raises:
        ModelServerError: no answer, an answer that was broken off, or none within `timeout_s`.
    """
    sampling = {"temperature": 0, "max_new_tokens": prompt.max_new_tokens}
    body = {"text": prompt.text, "sampling_params": sampling, "stream": True}
    url = f"{server.url}/generate"
    began = time.monotonic()
    stream = _Stream(url, began)
    with reached(url), http().stream("POST", url, json=body, timeout=timeout_s) as answer:
        if not answer.is_success:
            answer.read()
            refuse(answer)
        for line in answer.iter_lines():
            stream.take(line)
            if time.monotonic() - began > timeout_s:
                raise ModelServerError(
                    url, None, f"no whole answer after {timeout_s:g} s", advice="It is too slow, or hangs."
                )
    return stream.answered(prompt.name)


class _Stream:
    """What comes in of one answer: each event has the text so far, or a piece of it, as the server is set."""

    def __init__(self, url: str, began: float) -> None:
        self._url, self._began = url, began
        self._text, self._tokens = "", 0
        self._first: tuple[int, float] | None = None  # how many tokens came first, and when
        self._last = began
        self._ended = False

    def take(self, line: str) -> None:
        """Take in one line of the event stream."""
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            return
        if data == "[DONE]":
            self._ended = True
            return
        with understood(self._url, data):
            event = json.loads(data)
            if "error" in event:
                raise ModelServerError(self._url, 200, str(event["error"]), advice="See the server's log.")
            self._count(event)

    def _count(self, event: Mapping[str, Any]) -> None:
        meta = event["meta_info"]
        tokens = int(meta["completion_tokens"])
        # with --incremental-streaming-output each event has only its own tokens
        is_piece = self._tokens > 0 and len(event.get("output_ids", range(tokens))) < tokens
        self._text = self._text + event["text"] if is_piece else event["text"]
        if tokens > self._tokens:
            self._last = time.monotonic()
            self._first = self._first or (tokens, self._last)
        self._tokens = tokens
        finish = meta.get("finish_reason") or {}
        if finish.get("type") == "abort":
            words = f"the answer was broken off: {finish.get('message')}"
            raise ModelServerError(self._url, 200, words, advice="Somebody aborts requests, or it is paused.")

    def answered(self, prompt: str) -> Answered:
        """Return the whole answer.

        Raises:
            ModelServerError: the stream ended before the answer did.
        """
        if not self._ended:
            raise ModelServerGoneError(
                self._url, None, "the stream broke off", advice="See the server's log."
            )
        first_tokens, first_at = self._first or (0, self._last)
        more, took_s = self._tokens - first_tokens, self._last - first_at
        can_tell = more >= _LEAST_TOKENS and took_s >= _LEAST_S
        return Answered(
            prompt=prompt,
            text=self._text,
            tokens=self._tokens,
            first_token_s=first_at - self._began,
            tokens_per_s=more / took_s if can_tell else None,
        )
