"""The client of a model server, against the simulator, and against what other servers say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from lab.ports import free_port, give_back
from lab.sglang import FIRST_RELEASE, PROMPTS, LabSglang
from rules.errors import InvalidRequestError
from rules.ray_cluster import RayNodeProbe
from rules.serving import DeclaredPrompt, ModelServing
from tasks import sglang
from tasks.http_client import http
from tasks.model_files import tensor_checksums
from tasks.sglang import ModelServer, ModelServerError, ModelServerGoneError
from tests.tasks.modelling import (
    INSTANCE,
    a_request,
    answering,
    one_server,
    wait_until_busy,
    wait_until_idle,
)

KEY = "a-secret-of-the-operator"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSglang]:
    serving = ModelServing(prompts=PROMPTS, flags={"max-running-requests": 2})
    with one_server(tmp_path_factory.mktemp("m"), serving=serving, admin_key=KEY) as running:
        yield running


@pytest.fixture
def server(lab: LabSglang) -> ModelServer:
    wait_until_idle(lab)
    return sglang.server_of(lab.fleet.instance(INSTANCE), lab.serving)


# --- what it says ----------------------------------------------------------------------------------


def test_a_server_says_what_it_has_loaded_and_how_it_is_called(lab, server):
    path = f"{lab.root(INSTANCE)}/current/model"
    info = sglang.model_info(server)
    assert (info.model_path, info.served_model_name, info.weight_version) == (path, path, FIRST_RELEASE)
    assert info.architectures == ("LlamaForCausalLM",)
    assert sglang.served_models(server) == (path,)
    assert sglang.is_ready(server)
    assert sglang.server_info(server).version == "0.5.23"
    assert "weight_memory_usage_gb" in sglang.memory_metrics(server)


def test_its_address_is_the_root_of_its_probe_and_a_ray_node_has_none(lab, server):
    assert server.url == lab.server_url(INSTANCE)
    node = lab.fleet.instance(INSTANCE).model_copy(
        update={"probe": RayNodeProbe(dashboard="http://127.0.0.1:8265", node="h1")}
    )
    with pytest.raises(InvalidRequestError, match="serves no model"):
        sglang.server_of(node, lab.serving)


def test_running_and_waiting_requests_are_told_apart(lab, server):
    with a_request(lab, max_new_tokens=100, count=3):
        wait_until_busy(lab, waiting=1)
        seen = sglang.loads(server)
        assert (seen.running, seen.waiting, seen.idle) == (2, 1, False)
    wait_until_idle(lab)


def test_nobody_there_is_gone_and_not_ready():
    port = free_port()
    try:
        nobody = ModelServer(url=f"http://127.0.0.1:{port}")
        assert not sglang.is_ready(nobody)
        with pytest.raises(ModelServerGoneError, match="gave no answer: ConnectError") as raised:
            sglang.model_info(nobody)
        assert (raised.value.status, raised.value.url) == (None, f"http://127.0.0.1:{port}/model_info")
    finally:
        give_back(port)


def test_a_server_of_another_kind_is_told_apart_from_a_dead_one():
    answers = {"/model_info": (200, '{"version": "2.0"}'), "/v1/models": (200, "<html>")}
    with answering(answers) as other:
        with pytest.raises(ModelServerError, match="not what SGLang") as raised:
            sglang.model_info(other)
        assert not isinstance(raised.value, ModelServerGoneError)
        with pytest.raises(ModelServerError, match="Is this an SGLang server"):
            sglang.served_models(other)
        with pytest.raises(ModelServerError, match="answered 404") as raised:
            sglang.loads(other)
        assert raised.value.status == 404


def test_what_a_server_says_of_its_flags_is_never_shown():
    """The real one's /server_info has its admin key among them, and asks for no key itself."""
    said = '{"admin_api_key": "hunter2", "startup_time": {"tokenizer_e2e": "odd"}}'
    with answering({"/server_info": (200, said)}) as other, pytest.raises(ModelServerError) as raised:
        sglang.server_info(other)
    assert "hunter2" not in str(raised.value)


# --- the key ---------------------------------------------------------------------------------------


def test_admin_routes_are_asked_with_the_key_from_its_file(lab, server):
    checksums = sglang.weight_checksums(server)
    in_file = tensor_checksums(lab.model_directory(FIRST_RELEASE), ["model.embed_tokens.weight"])
    assert [rank.checksums["model.embed_tokens.weight"] for rank in checksums] == [*in_file.values()]


def test_without_the_key_it_says_what_to_declare(server):
    with pytest.raises(ModelServerError, match="admin_key_file") as raised:
        sglang.weight_checksums(server.model_copy(update={"admin_key_file": None}))
    assert raised.value.status == 401


def test_the_key_is_read_at_each_use(lab, server):
    path = lab.admin_key_file
    path.write_text("another\n")
    try:
        with pytest.raises(ModelServerError, match="answered 401") as raised:
            sglang.update_weights(server, model_path="/x", release="x", timeout_s=5)
        assert "another" not in str(raised.value)
    finally:
        path.write_text(f"{KEY}\n")
    assert sglang.weight_checksums(server)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660])
def test_a_key_that_others_may_read_is_not_used(lab, server, mode):
    lab.admin_key_file.chmod(mode)
    try:
        with pytest.raises(ModelServerError, match=f"has mode {mode:04o}") as raised:
            sglang.weight_checksums(server)
        assert KEY not in str(raised.value)
    finally:
        lab.admin_key_file.chmod(0o600)


@pytest.mark.parametrize("content", ["", "two\nlines", "schlüssel"])
def test_a_key_that_no_header_takes_is_not_used_and_not_shown(lab, server, content):
    lab.admin_key_file.write_text(content)
    try:
        with pytest.raises(ModelServerError, match="one line of ASCII") as raised:
            sglang.weight_checksums(server)
        assert not content or content not in str(raised.value)
    finally:
        lab.admin_key_file.write_text(f"{KEY}\n")


def test_a_key_file_that_is_not_there_is_said(server):
    with pytest.raises(ModelServerError, match="cannot be read"):
        sglang.weight_checksums(server.model_copy(update={"admin_key_file": "/nonexistent/key"}))


def test_ordinary_routes_do_not_get_the_key(lab, tmp_path):
    seen = []

    def look(request: httpx.Request) -> None:
        seen.append(request.headers.get("authorization"))

    hooks = http().event_hooks
    http().event_hooks = {"request": [look]}
    try:
        server = sglang.server_of(lab.fleet.instance(INSTANCE), lab.serving)
        sglang.model_info(server)
        sglang.weight_checksums(server)
    finally:
        http().event_hooks = hooks
    assert seen == [None, f"Bearer {KEY}"]


def test_a_server_without_the_route_cannot_tell_checksums():
    with answering({}) as other:
        assert sglang.weight_checksums(other) is None


# --- answers ---------------------------------------------------------------------------------------


def test_a_streamed_answer_is_the_whole_one_and_is_measured(lab, server):
    prompt = DeclaredPrompt(name="long", text="Hello", max_new_tokens=32)
    answered = sglang.generate(server, prompt, timeout_s=20)
    sampling = {"temperature": 0, "max_new_tokens": 32}
    whole = httpx.post(f"{server.url}/generate", json={"text": "Hello", "sampling_params": sampling}).json()
    assert (answered.prompt, answered.text, answered.tokens) == ("long", whole["text"], 32)
    assert 0.005 < answered.first_token_s < 5
    assert 20 < answered.tokens_per_s < 400  # 200 by its pace


def test_a_short_answer_says_nothing_of_the_speed(server):
    answered = sglang.generate(server, DeclaredPrompt(name="x", text="Hello", max_new_tokens=2), timeout_s=20)
    assert (answered.tokens, answered.tokens_per_s) == (2, None)


def test_a_prompt_that_is_refused_is_an_error_with_the_servers_words(server):
    # a stream has begun with 200 before the server looks at the prompt
    with pytest.raises(ModelServerError, match=r"answered 200: .*maximum context length"):
        sglang.generate(server, DeclaredPrompt(name="x", text="word " * 5000), timeout_s=20)


def test_an_answer_that_takes_too_long_is_given_up(server):
    began = time.monotonic()
    with pytest.raises(ModelServerError, match=r"no whole answer after 0\.3 s"):
        sglang.generate(server, DeclaredPrompt(name="x", text="Hello", max_new_tokens=1000), timeout_s=0.3)
    assert time.monotonic() - began < 3


def events(*said: dict[str, object] | str) -> dict[str, tuple[int, str]]:
    lines = [f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in said]
    return {"/generate": (200, "".join(lines))}


def event(
    text: str, ids: list[int], tokens: int, finish: dict[str, object] | None = None
) -> dict[str, object]:
    return {
        "text": text,
        "output_ids": ids,
        "meta_info": {"completion_tokens": tokens, "finish_reason": finish},
    }


SHORT = DeclaredPrompt(name="short", text="Hello")


def test_pieces_and_whole_texts_so_far_come_to_the_same():
    whole = events(event("a", [1], 1), event("ab", [1, 2], 2), event("abab", [1, 2, 3], 3), "[DONE]")
    pieces = events(event("a", [1], 1), event("b", [2], 2), event("ab", [3], 3), "[DONE]")
    for said in (whole, pieces):
        with answering(said) as server:
            answered = sglang.generate(server, SHORT, timeout_s=5)
        assert (answered.text, answered.tokens) == ("abab", 3)


def test_a_stream_that_breaks_off_is_no_answer():
    with (
        answering(events(event("a", [1], 1))) as server,
        pytest.raises(ModelServerGoneError, match="broke off"),
    ):
        sglang.generate(server, SHORT, timeout_s=5)


def test_an_aborted_answer_is_no_answer():
    aborted = event("a", [1], 1, {"type": "abort", "message": "Aborted"})
    with answering(events(aborted, "[DONE]")) as server, pytest.raises(ModelServerError, match="Aborted"):
        sglang.generate(server, SHORT, timeout_s=5)


def test_an_error_in_the_stream_is_an_error():
    said = events({"error": {"message": "out of memory"}}, "[DONE]")
    with answering(said) as server, pytest.raises(ModelServerError, match="out of memory"):
        sglang.generate(server, SHORT, timeout_s=5)


def test_a_refused_update_says_so_in_the_servers_words(server):
    with pytest.raises(ModelServerError, match="Failed to get weights iterator") as raised:
        sglang.update_weights(server, model_path="/nonexistent/model", release="x", timeout_s=5)
    assert raised.value.status == 400
    assert sglang.model_info(server).weight_version == FIRST_RELEASE


def test_an_update_that_a_running_request_holds_up_is_given_up_in_time(lab, server):
    path = f"{lab.root(INSTANCE)}/current/model"
    with a_request(lab, max_new_tokens=200):
        wait_until_busy(lab)
        with pytest.raises(ModelServerError, match="ReadTimeout") as raised:
            sglang.update_weights(server, model_path=path, release=FIRST_RELEASE, timeout_s=0.2)
    assert not isinstance(raised.value, ModelServerGoneError)
