"""How the simulated SGLang answers prompts: its own route, and the two that OpenAI's clients use."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

from lab.sglang_engine import Engine, Said
from lab.sglang_flags import Flags
from lab.sglang_http import Answer, Call

_TOO_LONG = (
    "Requested token count exceeds the model's maximum context length of {most} tokens. "
    "You requested a total of {total} tokens: {prompt} tokens from the input messages "
    "and {new} tokens for the completion."
)


class Prompts:
    """The routes that answer prompts."""

    def __init__(self, engine: Engine, flags: Flags) -> None:
        self._engine, self._flags = engine, flags

    async def generate(self, call: Call) -> Answer:
        """Answer `/generate`, SGLang's own way to ask."""
        asked = call.json()
        text, sampling = asked.get("text"), asked.get("sampling_params") or {}
        if not isinstance(text, str):
            words = "Either text, input_ids or input_embeds should be provided."
            return Answer.json({"error": {"message": words}}, 400)
        assert isinstance(sampling, dict)  # noqa: S101 - nothing else was ever sent
        most = int(sampling.get("max_new_tokens") or 128)
        if fault := self._too_long(text, most):
            if not asked.get("stream"):
                return Answer.json({"error": {"message": fault}}, 400)
            # a stream has begun with 200 before the engine has looked at the request
            return Answer.events(_fault_events(fault))
        id_ = asked.get("rid")
        said = self._engine.generate(
            text,
            most,
            ignore_eos=bool(sampling.get("ignore_eos")),
            streamed=bool(asked.get("stream")),
            id_=str(id_) if id_ else None,
        )
        if self._engine.fails():
            return Answer.json({"error": {"message": "this model fails by chance, as it was made to"}}, 500)
        if asked.get("stream"):
            return Answer.events(_events(_as_generated(one) async for one in said))
        return Answer.json(_as_generated(await _last(said)))

    async def chat(self, call: Call) -> Answer:
        """Answer `/v1/chat/completions`, by the template that the lab's models have."""
        asked = call.json()
        messages = asked.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("messages: Field required")
        prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return await self._openai(asked, f"{prompt}<|im_start|>assistant\n", "chat.completion")

    async def complete(self, call: Call) -> Answer:
        """Answer `/v1/completions`."""
        asked = call.json()
        return await self._openai(asked, str(asked.get("prompt", "")), "text_completion")

    async def _openai(self, asked: dict[str, object], prompt: str, kind: str) -> Answer:
        most = int(str(asked.get("max_tokens") or 128))
        if fault := self._too_long(prompt, most):
            return Answer.json(
                {"object": "error", "message": fault, "type": "BadRequestError", "code": 400}, 400
            )
        said = await _last(self._engine.generate(prompt, most))
        request, finished = said.request, said.finished or {}
        choice: dict[str, object] = {"index": 0, "finish_reason": finished.get("type")}
        if kind == "chat.completion":
            choice["message"] = {"role": "assistant", "content": said.text}
        else:
            choice["text"] = said.text
        new = len(request.tokens)
        usage = {
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": request.prompt_tokens + new,
        }
        # `model` is what was asked for, whatever that is
        head = {"id": request.id, "object": kind, "created": int(time.time()), "model": asked.get("model")}
        return Answer.json(
            {
                **head,
                "choices": [choice],
                "usage": usage,
                "metadata": {"weight_version": request.versions[-1]},
            }
        )

    def _too_long(self, text: str, new: int) -> str | None:
        prompt, most = self._engine.count(text), self._flags.context_length
        if prompt + new <= most:
            return None
        return _TOO_LONG.format(most=most, total=prompt + new, prompt=prompt, new=new)


async def _last(said: AsyncIterator[Said]) -> Said:
    async for one in said:
        last = one
    return last


async def _events(parts: AsyncIterator[dict[str, object]]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield b"data: " + json.dumps(part).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


async def _fault_events(fault: str) -> AsyncIterator[bytes]:
    error = {"message": fault, "type": "invalid_request_error", "code": 400, "retryable": False}
    yield b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _as_generated(said: Said) -> dict[str, object]:
    request = said.request
    meta: dict[str, object] = {
        "id": request.id,
        "finish_reason": said.finished,
        "prompt_tokens": request.prompt_tokens,
        "weight_version": (request.versions or [""])[-1],
        "completion_tokens": len(request.tokens),
        "cached_tokens": 0,
    }
    if said.finished:
        meta["weight_versions"] = request.spans()
        meta["e2e_latency"] = time.monotonic() - request.began
    return {"text": said.text, "output_ids": list(request.tokens), "meta_info": meta}
