import httpx

from lab.application import FIRST_RELEASE
from lab.load import Load
from lab.ports import is_listening
from lab.processes import marked, wait_until
from lab.releases import Behaviour


def test_users_are_served_by_the_first_release_and_everything_is_observed(application, tmp_path):
    answer = httpx.get(application.url, timeout=5)
    assert (answer.status_code, answer.headers["X-Release"]) == (200, FIRST_RELEASE)
    instance = {"link": f"releases/{FIRST_RELEASE}", "staged": [FIRST_RELEASE], "running": FIRST_RELEASE}
    names = ["blue-1", "blue-2", "green-1", "green-2"]
    assert application.observed() == {
        "instances": dict.fromkeys(names, instance),
        "route_map": {"web": "blue:green:0"},
        "route_map_file": "web blue:green:0\n",
        "servers": dict.fromkeys(names, "ready"),
    }


def test_the_fleet_names_what_runs(application):
    fleet = application.fleet
    assert fleet.sides == ("blue", "green")
    assert fleet.route.key == "web"
    for instance in fleet.instances:
        answer = httpx.get(instance.probe.url, timeout=5).json()
        assert answer[instance.probe.version_key] == FIRST_RELEASE


def test_a_killed_instance_is_observed_and_users_do_not_notice_for_long(application, tmp_path):
    application.kill("blue-1")
    assert application.observed()["instances"]["blue-1"]["running"] is None
    with Load(application.url, 50, tmp_path / "load") as load:
        wait_until(
            lambda: [row["failed"] for row in load.rows()][-20:] == [False] * 20,
            timeout_s=20,
            what="twenty good answers in a row",
        )


def test_a_change_carries_its_archive(application):
    change = application.change("2.0.0", Behaviour(error_ratio=0.1))
    assert (change.application, change.pointer, change.target) == ("web", "2.0.0", "application-web")


def test_stopped_it_leaves_no_process_and_no_port(application):
    ports = [*application.ports.values(), application.haproxy.port]
    assert all(is_listening(port) for port in ports)
    application.stop()
    assert not any(is_listening(port) for port in ports)
    assert list(marked(application.directory)) == []
