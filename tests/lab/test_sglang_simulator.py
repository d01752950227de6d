"""Faults that the simulator can be given, by the model or by its environment."""

import json
import time

import httpx
import pytest

from lab.model import ModelBehaviour, make_gguf, make_model
from lab.processes import wait_until
from lab.sglang import server_command
from lab.sglang_life import Launcher


@pytest.fixture
def launch(tmp_path):
    def start(behaviour=None, *flags, **pace):
        argv, environment = server_command(real=False, environment={"LAB_SGLANG": json.dumps(pace)})
        model = make_model(tmp_path / "model", behaviour=behaviour or ModelBehaviour())
        return Launcher(argv, environment, 20.0, tmp_path).started(model, *flags)

    return start


def generate(server, **body):
    body = {"text": "Hello", "sampling_params": {"max_new_tokens": 8}, **body}
    return httpx.post(f"{server.url}/generate", json=body, timeout=20)


def test_a_model_that_fails_to_start_ends_with_1(launch):
    with launch(ModelBehaviour(fails_to_start=True)) as server:
        assert server.exit_code() == 1
        assert "fails to start" in server.log.read_text()


def test_a_model_may_load_slowly_and_never_get_ready(launch):
    began = time.monotonic()
    with launch(ModelBehaviour(load_s=0.7, never_ready=True)) as server:
        wait_until(lambda: server.seen("/model_info") == 200, timeout_s=10, what="it to listen")
        assert time.monotonic() - began > 0.7
        time.sleep(0.3)
        assert (server.seen("/ready"), server.seen("/health")) == (503, 503)


def test_a_model_may_die_by_itself(launch):
    with launch(ModelBehaviour(dies_after_s=0.2)) as server:
        assert server.exit_code() == 70


def test_a_model_may_name_another_version_and_fail_by_chance(launch):
    with launch(ModelBehaviour(wrong_version=True, error_ratio=0.5), "--weight-version", "m2") as server:
        server.wait_until_ready()
        assert httpx.get(f"{server.url}/model_info").json()["weight_version"] == "m2-wrong"
        errors = sum(generate(server).status_code == 500 for _ in range(60))
        assert 12 <= errors <= 48  # 30 expected; four and a half standard deviations are 18


def test_the_model_wins_over_the_environment_in_how_fast_it_answers(launch):
    with launch(ModelBehaviour(first_token_s=0.4), first_token_s=0.0, tokens_per_s=20.0) as server:
        server.wait_until_ready()
        began = time.monotonic()
        generate(server)
        took = time.monotonic() - began
        assert 0.4 + 7 / 20 < took < 4


def test_requests_beyond_the_most_that_run_wait_and_say_so(launch):
    with launch(None, "--max-running-requests", "1", tokens_per_s=100.0) as server:
        server.wait_until_ready()
        body = {"text": "Hello", "stream": True, "sampling_params": {"max_new_tokens": 40}}
        with (
            httpx.stream("POST", f"{server.url}/generate", json=body, timeout=20) as one,
            httpx.stream("POST", f"{server.url}/generate", json=body, timeout=20) as two,
        ):
            load = httpx.get(f"{server.url}/v1/loads").json()["loads"][0]
            assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (1, 1)
            assert [sum(1 for _ in answer.iter_lines()) > 40 for answer in (one, two)] == [True, True]


def test_a_gguf_file_is_served_by_its_bytes(tmp_path):
    argv, environment = server_command(real=False)
    launcher = Launcher(argv, environment, 20.0, tmp_path)
    with launcher.started(make_gguf(tmp_path / "model.gguf")) as server:
        server.wait_until_ready()
        assert generate(server).json()["meta_info"]["completion_tokens"] == 8
