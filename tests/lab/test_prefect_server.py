import uuid

import httpx

from lab.identity import started_ticks
from lab.ports import is_listening
from lab.prefect_server import separate_server
from lab.processes import clean_environment


def write_variable(server, name):
    answer = httpx.post(f"{server.api_url}/variables/", json={"name": name, "value": 7}, timeout=30)
    answer.raise_for_status()


def test_a_killed_server_comes_back_on_its_port_with_its_data(tmp_path, postgres):
    name = f"kept_{uuid.uuid4().hex}"
    with separate_server(tmp_path, postgres, name) as server:
        url, pid = server.api_url, server.process.pid
        write_variable(server, name)
        server.kill()
        assert started_ticks(pid) is None
        assert not is_listening(server.port)
        server.start()
        assert server.api_url == url
        assert httpx.get(f"{url}/variables/name/{name}", timeout=30).json()["value"] == 7
    assert not is_listening(server.port)


def test_flows_of_this_process_run_against_the_server(prefect_api):
    from prefect import flow  # noqa: PLC0415 - other tests do not wait for Prefect's import

    @flow
    def answer() -> int:
        return 42

    state = answer(return_state=True)
    run = httpx.get(f"{prefect_api.api_url}/flow_runs/{state.state_details.flow_run_id}", timeout=30).json()
    assert run["state_type"] == "COMPLETED"


def test_nothing_is_told_to_anybody_outside(prefect_server):
    settings = httpx.get(f"{prefect_server.api_url}/admin/settings", timeout=30).json()
    assert settings["server"]["analytics_enabled"] is False


def test_a_program_started_here_sees_this_server_and_no_other_setting(prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_KEY", "of-somebody-else")
    environment = clean_environment(prefect_server.directory, prefect_server.environment())
    assert environment["PREFECT_API_URL"] == prefect_server.api_url
    assert "PREFECT_API_KEY" not in environment
