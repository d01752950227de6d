"""Users of a model: prompts at a constant rate, from a process of its own, each of them written down.

As `lab.load` does, except that a request is a prompt, that the release is what the answer itself says, and
that an answer which was cut off counts as failed.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import time
from pathlib import Path

import aiohttp

from lab.load import Load, Row, row_of, send_all, user

_TIMEOUT_S = 60.0
_KNOWN_USERS = 0.5


class PromptLoad(Load):
    """A stream of prompts to `url`, the balancer's root, while the `with` block lasts."""

    _timeout_s = _TIMEOUT_S

    def __init__(
        self,
        url: str,
        rate_per_s: float,
        directory: Path,
        *,
        prompt: str = "The capital of France is",
        max_new_tokens: int = 8,
        max_duration_s: float = 600.0,
    ) -> None:
        super().__init__(url, rate_per_s, directory, max_duration_s=max_duration_s)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens

    def _program(self) -> tuple[str, dict[str, object]]:
        return "lab.sglang_load", {"--prompt": self.prompt, "--max-new-tokens": self.max_new_tokens}


async def _send(url: str, body: dict[str, object], http: aiohttp.ClientSession, due: float) -> Row:
    sent_at, status, side, release, whole = time.time(), None, None, None, False
    try:
        async with http.post(url, json=body, headers=user(_KNOWN_USERS)) as answer:
            side = answer.headers.get("X-Backend")
            said = json.loads(await answer.read() or b"{}")
            status = answer.status
            meta = said.get("meta_info", {})
            release = meta.get("weight_version")
            whole = bool(said.get("text")) and meta.get("finish_reason", {}).get("type") in {"stop", "length"}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        pass  # nobody answered, or not to the end, or no JSON: the row says so
    return row_of(sent_at=sent_at, due=due, side=side, release=release, status=status, whole=whole)


def main() -> None:
    """Send what the arguments say, until SIGTERM or the longest duration."""
    arguments = argparse.ArgumentParser(prog="python -m lab.sglang_load", description="Send prompts.")
    arguments.add_argument("--url", required=True, help="root of the servers or of their balancer")
    arguments.add_argument("--rate", type=float, required=True, help="prompts per second")
    arguments.add_argument("--prompt", default="The capital of France is")
    arguments.add_argument("--max-new-tokens", type=int, default=8)
    arguments.add_argument("--max-duration", type=float, default=600.0, help="seconds")
    arguments.add_argument("--output", type=Path, required=True, help="JSON lines are appended")
    given = arguments.parse_args()
    sampling = {"temperature": 0, "max_new_tokens": given.max_new_tokens}
    body: dict[str, object] = {"text": given.prompt, "sampling_params": sampling}
    send = functools.partial(_send, f"{given.url.rstrip('/')}/generate", body)
    pace = {"rate_per_s": given.rate, "max_duration_s": given.max_duration, "timeout_s": _TIMEOUT_S}
    with given.output.open("a", buffering=1) as output:
        asyncio.run(send_all(send, output, **pace))


if __name__ == "__main__":
    main()
