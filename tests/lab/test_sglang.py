import json
import subprocess
import time

import httpx
import pytest

from lab.gpu import LabGpu, LabGpus
from lab.identity import started_ticks
from lab.model import ModelBehaviour, make_model, truncate
from lab.ports import is_listening
from lab.processes import marked, wait_until
from lab.service import STOPPED
from lab.sglang import FIRST_RELEASE, PROMPTS, LabSglang, digest


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    with LabSglang(tmp_path_factory.mktemp("chat"), admin_key="open sesame") as running:
        yield running


def service(lab, instance, command):
    argv = getattr(lab.fleet.instance(instance).service, command)
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=90)


def test_users_are_served_by_the_first_release_and_everything_is_observed(chat):
    seen = chat.observed()
    assert seen["route_map"] == {"chat": "blue:green:0"}
    assert seen["servers"] == {"blue-1": "ready", "green-1": "ready"}
    tensors = {one.pop("tensors") for one in seen["instances"].values()}
    assert len(tensors) == 1
    assert None not in tensors
    for name, one in seen["instances"].items():
        model = f"{chat.root(name)}/current/model"
        assert one == {
            "link": f"releases/{FIRST_RELEASE}",
            "staged": [FIRST_RELEASE],
            "running": FIRST_RELEASE,
            "model_path": model,
            "served_model_name": model,
            "says": " Paris.",
        }


def test_the_fleet_names_what_runs_and_the_declared_prompts_are_answered(chat):
    fleet = chat.fleet
    assert fleet.sides == ("blue", "green")
    assert fleet.model_serving.prompts == PROMPTS
    for instance in fleet.instances:
        info = httpx.get(instance.probe.url, timeout=5).json()
        assert info[instance.probe.version_key] == FIRST_RELEASE
        assert httpx.get(instance.probe.ready_url, timeout=5).status_code == 200


def test_admin_routes_want_the_key_that_stands_in_its_file(chat):
    url = f"{chat.server_url('blue-1')}/weights_checker"
    assert httpx.post(url, json={}, timeout=5).status_code == 401
    key = chat.admin_key_file.read_text().strip()
    assert chat.fleet.model_serving.admin_key_file == str(chat.admin_key_file)
    assert httpx.post(url, json={}, headers={"Authorization": f"Bearer {key}"}, timeout=5).status_code == 200
    assert chat.admin_key_file.stat().st_mode & 0o077 == 0


def test_users_prompts_are_counted_by_side_and_by_weights(chat, tmp_path):
    with chat.load(40, tmp_path) as load:
        wait_until(lambda: len(load.rows()) > 40, timeout_s=30, what="forty prompts")
    summary = load.summary()
    assert summary.failed == 0
    assert summary.by_side == {"blue": summary.requests}
    assert summary.by_release == {FIRST_RELEASE: summary.requests}


def test_a_killed_server_is_observed_and_its_users_fail(chat, tmp_path):
    chat.kill("blue-1")
    try:
        seen = chat.observed()["instances"]["blue-1"]
        assert (seen["running"], seen["says"]) == (None, None)
        assert service(chat, "blue-1", "status").returncode == STOPPED
        with chat.load(20, tmp_path) as load:
            wait_until(lambda: len(load.rows()) > 5, timeout_s=30, what="five prompts")
        assert load.summary().failed == load.summary().requests
    finally:
        assert service(chat, "blue-1", "start").returncode == 0
        chat.wait_until_ready("blue-1")


def test_starting_twice_and_stopping_twice_change_nothing(chat):
    pid_file = chat.root("green-1") / "run" / "pid.json"
    before = json.loads(pid_file.read_text())
    assert service(chat, "green-1", "start").returncode == 0
    assert json.loads(pid_file.read_text()) == before
    assert [service(chat, "green-1", "stop").returncode for _ in range(2)] == [0, 0]
    assert started_ticks(before["pid"]) is None
    assert not is_listening(chat.ports["green-1"])
    assert service(chat, "green-1", "start").returncode == 0
    chat.wait_until_ready("green-1")


def test_a_stop_lets_running_requests_end_and_still_takes_new_ones(chat, tmp_path):
    with httpx.Client(base_url=chat.server_url("green-1"), timeout=60) as client:
        sampling = {"max_new_tokens": 400, "ignore_eos": True}
        with client.stream(
            "POST", "/generate", json={"text": "Hello", "stream": True, "sampling_params": sampling}
        ) as r:
            lines = r.iter_lines()
            next(lines)
            stopping = subprocess.Popen(chat.fleet.instance("green-1").service.stop)
            wait_until(
                lambda: httpx.get(f"{chat.server_url('green-1')}/ready", timeout=5).status_code == 503,
                timeout_s=20,
                what="the server to be no longer ready",
            )
            late = httpx.post(
                f"{chat.server_url('green-1')}/generate",
                json={"text": "Hello", "sampling_params": {"max_new_tokens": 2}},
                timeout=20,
            )
            *_, last, done = [line for line in lines if line]
        assert late.status_code == 200, "the trap: traffic must be cut before a stop"
        assert done == "data: [DONE]"
        finish = json.loads(last.removeprefix("data: "))["meta_info"]["finish_reason"]
        assert finish == {"type": "length", "length": 400}
    assert stopping.wait(timeout=30) == 0
    assert service(chat, "green-1", "start").returncode == 0
    chat.wait_until_ready("green-1")


def test_nothing_is_started_without_a_release(tmp_path):
    lab = LabSglang(tmp_path)
    root = lab.root("blue-1")
    root.mkdir(parents=True)
    failed = service(lab, "blue-1", "start")
    assert failed.returncode == 1
    assert "points to no release" in failed.stderr
    lab.stop()


def test_a_change_carries_the_digest_that_coreutils_print(chat):
    change = chat.change("m2", context_length=1024)
    script = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    printed = subprocess.run(
        ["sh", "-c", script], cwd=change.artefact.path, capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert change.artefact.sha256 == printed == digest(chat.model_directory("m2"))
    assert (change.model, change.release, change.flags) == ("chat", "m2", {"context-length": 1024})


def test_memory_of_the_gpu_rises_with_weights_and_falls_at_the_end(tmp_path, monkeypatch):
    gpus = LabGpus(tmp_path / "gpu")
    gpus.say(LabGpu(total_mib=8192, used_mib=500))
    used = lambda: int((gpus.directory / "gpus").read_text().split()[1])  # noqa: E731
    with LabSglang(tmp_path / "chat", environment=gpus.environment) as lab:
        assert used() == 500 + 2 * 1024
        larger = make_model(tmp_path / "larger", seed=2, behaviour=ModelBehaviour(vram_mib=3000))
        body = {"model_path": str(larger), "weight_version": "m2"}
        url = f"{lab.server_url('blue-1')}/update_weights_from_disk"
        assert httpx.post(url, json=body, timeout=20).json()["success"]
        assert used() == 500 + 1024 + 3000
        lab.kill("blue-1")  # says nothing at its end, as a driver would
        assert service(lab, "blue-1", "start").returncode == 0
        lab.wait_until_ready("blue-1")
        assert used() == 500 + 2 * 1024
        truncate(larger)
        with pytest.raises(httpx.TransportError):
            httpx.post(url, json=body, timeout=20)
        wait_until(lambda: used() == 500 + 1024, timeout_s=5, what="the dead server's memory")
    assert used() == 500


def test_stopped_it_leaves_no_process_and_no_port(tmp_path):
    lab = LabSglang(tmp_path / "chat")
    began = time.monotonic()
    lab.start()
    assert time.monotonic() - began < 10
    ports = [*lab.ports.values(), lab.haproxy.port]
    assert all(is_listening(port) for port in ports)
    lab.stop()
    assert not any(is_listening(port) for port in ports)
    assert list(marked(lab.directory)) == []
