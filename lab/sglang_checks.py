"""Checks of what an SGLang server says of itself and answers to prompts; see `lab.sglang_probe`."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import httpx

from lab.contract import expect
from lab.model_weights import read_tensors
from lab.sglang_contract import (
    ANSWER,
    FREE_PROMPT,
    PROMPT,
    Contract,
    check,
    checksums_of,
    client,
    foretold,
    wait,
)

_OK, _BAD, _GONE = httpx.codes.OK, httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND
_TOO_MANY_TOKENS = 50_000
_FREE_TOKENS = 12
#: What `tasks.sglang` and dashboards read.
_METRICS = (
    "num_running_reqs",
    "num_queue_reqs",
    "token_usage",
    "gen_throughput",
    "weight_memory_usage_gb",
    "kv_cache_memory_usage_gb",
    "num_requests_total",
    "generation_tokens_total",
    "time_to_first_token_seconds_count",
    "e2e_request_latency_seconds_sum",
)


# --- what it says about itself ----------------------------------------------------------------------------


@check
def ready_is_answered_at_once_and_without_a_body(server: Contract) -> None:
    """The route to poll."""
    began = time.monotonic()
    answer = server.get("/ready")
    expect((answer.status_code, answer.content) == (_OK, b""), "200 without a body", answer)
    expect(time.monotonic() - began < 1, "an answer within a second", time.monotonic() - began)


@check
def health_takes_a_second_because_it_generates(server: Contract) -> None:
    """The route not to poll."""
    began = time.monotonic()
    answer = server.get("/health")
    expect(answer.status_code == _OK, "200", answer)
    expect(time.monotonic() - began >= 1, "a second or more", time.monotonic() - began)


@check
def model_info_names_the_path_as_told_and_the_weight_version(server: Contract) -> None:
    """By which a release is known."""
    info = server.info()
    expect(info["model_path"] == info["served_model_name"] == str(server.model), "the path as told", info)
    expect(info["weight_version"] == server.version, server.version, info)
    expect(info["architectures"] == ["LlamaForCausalLM"], "the architecture", info)


@check
def v1_models_lists_the_served_name_and_denies_another(server: Contract) -> None:
    """The second place where the served name is read."""
    models = server.get("/v1/models").json()["data"]
    expect([one["id"] for one in models] == [str(server.model)], "the served name", models)
    expect(models[0]["max_model_len"] > 0, "a context length", models)
    expect(server.get("/v1/models/nobody").status_code == _GONE, "404 for another name", "no 404")


@check
def server_info_tells_the_version_the_device_and_how_long_it_took_to_start(server: Contract) -> None:
    """By which an interruption is announced."""
    info = server.get("/server_info").json()
    expect(info["version"].startswith("0.5."), "version 0.5", info["version"])
    expect(info["startup_time"]["tokenizer_e2e"] > 0, "seconds", info["startup_time"])
    expect(info["startup_time"]["load_weight"] >= 0, "seconds", info["startup_time"])
    expect(info["device"], "a device", info["device"])


@check
def loads_and_metrics_show_a_running_request(server: Contract) -> None:
    """By which it is known when nothing runs any more."""
    expect(server.running() == 0, "nothing running", server.running())
    with server.busy():
        expect(server.running() == 1, "one running request", server.running())
        load = server.get("/v1/loads").json()["loads"][0]
        expect(load["num_waiting_reqs"] == 0, "none waiting", load)
    wait(lambda: server.running() == 0, "nothing running")


@check
def metrics_have_the_names_that_are_read(server: Contract) -> None:
    """It must have been started with --enable-metrics."""
    server.say()
    found = {line.partition("{")[0] for line in server.get("/metrics").text.splitlines()}
    missing = [name for name in _METRICS if f"sglang:{name}" not in found]
    expect(not missing, "all metrics", f"missing {missing}")


@check
def checksums_are_of_the_files_bytes(server: Contract) -> None:
    """Proof that the right weights are in memory, tensor by tensor, where none are cut up or converted."""
    expected = checksums_of(read_tensors(server.model / "model.safetensors"))
    expect(server.checksums() == expected, f"{expected}", server.checksums())
    left = server.checksums(skip_tensor_list=["embed_tokens", "lm_head"])
    expect(set(expected) - set(left) == {"model.embed_tokens.weight", "lm_head.weight"}, "two left out", left)
    answer = server.post("/weights_checker", {"action": "checksum"}).json()
    expect(isinstance(answer["ranks"][0]["parallelism_info"], list), "a list of parallelism", answer["ranks"])


@check
def unknown_routes_and_actions_are_refused(server: Contract) -> None:
    """So that an older server is told from a failure."""
    expect(server.get("/no-such-route").status_code == _GONE, "404", "another status")
    expect(
        server.post("/weights_checker", {"action": "no-such"}).status_code == _BAD, "400", "another status"
    )


@check
def admin_routes_want_the_key_where_there_is_one(server: Contract) -> None:
    """The others never do."""
    if not server.admin_key:
        return
    refused = client().post(f"{server.url}/update_weights_from_disk", json={"model_path": str(server.model)})
    expect(refused.status_code == httpx.codes.UNAUTHORIZED, "401", refused)
    expect(client().get(f"{server.url}/model_info").status_code == _OK, "200 without a key", "another status")


# --- what it answers to prompts ---------------------------------------------------------------------------


@check
def a_prompt_is_answered_greedily_by_what_the_weights_say(server: Contract) -> None:
    """The same text from any engine, so a wrong model is told from a right one."""
    said = server.say()
    meta = said["meta_info"]
    expect(said["text"] == ANSWER, ANSWER, said)
    expect(meta["finish_reason"] == {"type": "stop", "matched": 1}, "stopped by the end token", meta)
    expect(meta["completion_tokens"] == len(said["output_ids"]), "each token counted", said)
    expect(meta["weight_version"] == server.version, server.version, meta)
    free = server.say(FREE_PROMPT, _FREE_TOKENS)["text"]
    expect(free == foretold(server.model, FREE_PROMPT, _FREE_TOKENS), "what can be foretold", free)


@check
def the_longest_length_ends_an_answer(server: Contract) -> None:
    """And the end token does not, when it is to be ignored."""
    said = server.say(PROMPT, 9, ignore_eos=True)
    expect(len(said["output_ids"]) == 9, "nine tokens", said)  # noqa: PLR2004 - as asked for
    expect(said["meta_info"]["finish_reason"] == {"type": "length", "length": 9}, "ended by length", said)


@check
def a_stream_has_the_whole_text_so_far_in_each_event(server: Contract) -> None:
    """By which the time to the first token is measured."""
    events, last = _streamed(server, FREE_PROMPT, 8)
    texts = [event["text"] for event in events]
    expect(last == "[DONE]", "[DONE] at the end", last)
    expect(all(b.startswith(a) for a, b in itertools.pairwise(texts)), "texts that grow", texts)
    reasons = [event["meta_info"]["finish_reason"] for event in events]
    expect(reasons[:-1] == [None] * (len(reasons) - 1), "no reason before the end", reasons)
    expect(reasons[-1]["type"] == "length", "a reason at the end", reasons)
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    expect(counts == sorted(counts) and counts[-1] == 8, "tokens counted up to eight", counts)  # noqa: PLR2004


@check
def what_cannot_be_answered_is_refused(server: Contract) -> None:
    """A stream has said 200 before it knows."""
    expect(
        server.post("/generate", {"nothing": 1}).status_code == _BAD, "400 without a text", "another status"
    )
    sampling = {"max_new_tokens": _TOO_MANY_TOKENS}
    refused = server.post("/generate", {"text": "x", "sampling_params": sampling})
    expect(refused.status_code == _BAD, "400 for more than fits", refused)
    events, last = _streamed(server, "x", _TOO_MANY_TOKENS)
    expect("error" in events[0] and last == "[DONE]", "an event with the error", events)


@check
def chat_answers_200_whatever_model_is_asked_for(server: Contract) -> None:
    """The trap: an answer says nothing about which model gave it."""
    body = {
        "model": "nobody",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 4,
        "temperature": 0,
    }
    answer = server.post("/v1/chat/completions", body)
    expect(answer.status_code == _OK and answer.json()["model"] == "nobody", "200 in that name", answer.text)
    completed = server.post(
        "/v1/completions", {"model": "nobody", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    )
    expect(completed.json()["choices"][0]["text"] == ANSWER, ANSWER, completed.text)


@check
def an_aborted_request_says_so(server: Contract) -> None:
    """It is no failure by status alone."""
    with server.busy() as asking:
        expect(server.post("/abort_request", {"abort_all": True}).status_code == _OK, "200", "another status")
        meta = asking.answer()["meta_info"]
    expect(meta["finish_reason"]["type"] == "abort", "a reason", meta)


def _streamed(server: Contract, text: str, tokens: int) -> tuple[list[dict[str, Any]], str]:
    sampling = {"temperature": 0, "max_new_tokens": tokens}
    answer = server.post("/generate", {"text": text, "stream": True, "sampling_params": sampling})
    expect(answer.status_code == _OK, "200", answer.text)
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return [json.loads(one) for one in data[:-1]], data[-1]
