"""An application's instance: staged, switched, restarted, probed and taken back, here and by ssh."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab.application import FIRST_RELEASE, LabApplication
from lab.releases import Behaviour
from rules.change import ApplicationRelease, NixStorePath, RayRelease, ReleaseArchive
from rules.errors import CommandError, RevokedError, StepFailedError
from rules.fleet import CommandService, Fleet, Instance, InstanceState, Probe, SmokeTest
from rules.undo import RemoveRelease
from tasks.application import (
    NotReadyError,
    current_release,
    read_instance,
    remove_release,
    restart_service,
    running_release,
    service_runs,
    smoke_test,
    stage_release,
    staged_releases,
    stop_service,
    switch_release,
    wait_until_ready,
)
from tasks.settings import Settings
from tests.tasks.ray_head import fake_head, node
from tests.tasks.updating import (
    DEPLOYMENT,
    INSTANCE,
    NEXT_RELEASE,
    SETTINGS,
    files,
    pid,
    releases,
    stage,
    update,
)

# --- staging ---------------------------------------------------------------------------------------


def test_a_staged_release_lies_whole_beside_the_running_one(web, instance):
    before = pid(instance)
    stage(instance, web.change(NEXT_RELEASE))
    assert read_instance(instance) == InstanceState(
        release=FIRST_RELEASE, running=FIRST_RELEASE, releases=(FIRST_RELEASE, NEXT_RELEASE)
    )
    assert files(web) == [FIRST_RELEASE, NEXT_RELEASE]
    staged = releases(web) / NEXT_RELEASE
    assert sorted(p.name for p in staged.iterdir()) == [".sha256", "app.py", "behaviour.json"]
    assert pid(instance) == before


def test_staging_twice_is_staging_once(web, local):
    change = web.change(NEXT_RELEASE)
    stage(local, change)
    inode = (releases(web) / NEXT_RELEASE).stat().st_ino
    stage(local, change)
    assert (releases(web) / NEXT_RELEASE).stat().st_ino == inode
    assert files(web) == [FIRST_RELEASE, NEXT_RELEASE]


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(web, instance):
    change, before = web.change(NEXT_RELEASE), pid(instance)
    wrong = change.artefact.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StepFailedError, match="not unpacked"):
        stage(instance, change.model_copy(update={"artefact": wrong}))
    assert staged_releases(instance) == (FIRST_RELEASE,)
    assert not list(releases(web).glob(".staging-*/tree/*"))
    assert (running_release(instance), pid(instance)) == (FIRST_RELEASE, before)


def test_a_full_disk_is_refused_before_the_archive_is_copied(web, local):
    greedy = Settings(staging_reserve_ratio=1e12)
    with pytest.raises(StepFailedError, match=r"bytes free in .* needed"):
        stage(local, web.change(NEXT_RELEASE), greedy)
    assert staged_releases(local) == (FIRST_RELEASE,)
    assert not list(releases(web).glob(".staging-*/archive"))


def test_a_release_id_never_changes_its_content(web, local):
    stage(local, web.change(NEXT_RELEASE))
    with pytest.raises(StepFailedError, match="already with other content"):
        stage(local, web.change(NEXT_RELEASE, Behaviour(error_ratio=0.5)))
    (releases(web) / NEXT_RELEASE / ".sha256").unlink()
    with pytest.raises(StepFailedError, match="sha256 unknown"):
        stage(local, web.change(NEXT_RELEASE))


def test_a_file_that_is_no_archive_is_not_staged(web, local):
    change = web.change(NEXT_RELEASE)
    path = Path(change.artefact.path)
    path.write_bytes(b"no archive")
    artefact = ReleaseArchive(path=str(path), sha256=hashlib.sha256(b"no archive").hexdigest())
    with pytest.raises(CommandError, match="does not look like a tar archive"):
        stage(local, change.model_copy(update={"artefact": artefact}))
    assert staged_releases(local) == (FIRST_RELEASE,)


def test_a_store_path_does_not_fit_a_release_directory(local):
    path = NixStorePath(path="/nix/store/" + "0" * 32 + "-web")
    change = ApplicationRelease(application="web", release=NEXT_RELEASE, artefact=path)
    with pytest.raises(StepFailedError, match="nix_store_path does not fit"):
        stage(local, change)


def node_release(web: LabApplication) -> RayRelease:
    return RayRelease(cluster="ray", release=NEXT_RELEASE, artefact=web.change(NEXT_RELEASE).artefact)


def test_a_nodes_release_is_staged_with_the_labels_that_it_starts_with(web, instance):
    change = node_release(web)
    stage_release(instance, change, deployment=DEPLOYMENT, settings=SETTINGS)
    staged = releases(web) / NEXT_RELEASE
    assert sorted(p.name for p in staged.iterdir()) == [".sha256", "app.py", "behaviour.json", "labels.yaml"]
    # strings, also where a release looks like a number, or Ray refuses to start
    assert (staged / "labels.yaml").read_text() == f'host: "{INSTANCE}"\nrelease: "{NEXT_RELEASE}"\n'
    inode = (staged / "labels.yaml").stat().st_ino
    stage_release(instance, change, deployment=DEPLOYMENT, settings=SETTINGS)
    assert (staged / "labels.yaml").stat().st_ino == inode
    assert files(web) == [FIRST_RELEASE, NEXT_RELEASE]


def test_labels_that_somebody_removed_or_changed_come_back(web, local):
    change = node_release(web)
    stage_release(local, change, deployment=DEPLOYMENT, settings=SETTINGS)
    labels = releases(web) / NEXT_RELEASE / "labels.yaml"
    right = labels.read_text()
    for spoil in (labels.unlink, lambda: labels.write_text("host: another\n")):
        spoil()
        stage_release(local, change, deployment=DEPLOYMENT, settings=SETTINGS)
        assert labels.read_text() == right


STAGING = """
import sys
from rules.change import ApplicationRelease
from rules.fleet import Instance
from tasks.application import stage_release
from tasks.settings import Settings

instance = Instance.model_validate_json(sys.argv[1])
change = ApplicationRelease.model_validate_json(sys.argv[2])
stage_release(instance, change, deployment=sys.argv[3], settings=Settings())
"""


def heavy(web: LabApplication, directory: Path) -> ApplicationRelease:
    """A release that takes a while to copy and unpack."""
    light = web.change(NEXT_RELEASE)
    (directory / "ballast").write_bytes(os.urandom(1 << 20) * 64)
    path = directory / "heavy.tar"
    with tarfile.open(light.artefact.path) as packed, tarfile.open(path, "w") as heavier:
        for member in packed:
            heavier.addfile(member, packed.extractfile(member))
        heavier.add(directory / "ballast", "ballast")
    digest = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout[:64]
    archive = ReleaseArchive(path=str(path), sha256=digest)
    return light.model_copy(update={"artefact": archive})


@pytest.fixture
def killed_while_staging(web: LabApplication, local: Instance, tmp_path: Path) -> ApplicationRelease:
    change = heavy(web, tmp_path)
    argv = [sys.executable, "-c", STAGING, local.model_dump_json(), change.model_dump_json(), DEPLOYMENT]
    with subprocess.Popen(argv) as staging:
        while not list(releases(web).glob(".staging-*/tree")):
            assert staging.poll() is None
            time.sleep(0.002)
        time.sleep(0.1)
        staging.send_signal(signal.SIGKILL)
    assert staged_releases(local) == (FIRST_RELEASE,)
    assert files(web) == [f".staging-{DEPLOYMENT}", FIRST_RELEASE]
    return change


def test_staging_goes_through_after_it_was_killed_halfway(web, local, killed_while_staging):
    stage(local, killed_while_staging)
    assert files(web) == [FIRST_RELEASE, NEXT_RELEASE]
    ballast = releases(web) / NEXT_RELEASE / "ballast"
    assert ballast.stat().st_size == 64 << 20


def test_staging_that_was_killed_halfway_leaves_nothing_once_taken_back(web, local, killed_while_staging):
    remove_release(local, RemoveRelease(instance=INSTANCE, release=NEXT_RELEASE), deployment=DEPLOYMENT)
    assert files(web) == [FIRST_RELEASE]


# --- switching and restarting ----------------------------------------------------------------------


def test_a_switch_changes_the_link_and_nothing_else(web, local):
    stage(local, web.change(NEXT_RELEASE))
    switch_release(local, NEXT_RELEASE)
    assert (current_release(local), running_release(local)) == (NEXT_RELEASE, FIRST_RELEASE)
    switch_release(local, NEXT_RELEASE)
    assert current_release(local) == NEXT_RELEASE


def test_nobody_ever_sees_the_link_missing(web, local):
    stage(local, web.change(NEXT_RELEASE))
    link, seen, done = web.root(INSTANCE) / "current", set[str](), threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(os.readlink(link))  # noqa: PTH115 - the raw target
            except OSError as error:
                seen.add(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        switch_release(local, NEXT_RELEASE)
        switch_release(local, FIRST_RELEASE)
    done.set()
    reader.join()
    assert seen == {f"releases/{FIRST_RELEASE}", f"releases/{NEXT_RELEASE}"}


def test_a_restart_runs_what_the_link_points_to(web, local):
    before = pid(local)
    update(web, local)
    assert wait_until_ready(local, NEXT_RELEASE, timeout_s=20) < 20
    assert running_release(local) == NEXT_RELEASE
    assert pid(local) != before


def test_a_stopped_service_is_started_by_a_restart_and_may_be_stopped_twice(instance):
    assert service_runs(instance)
    stop_service(instance, settings=SETTINGS)
    stop_service(instance, settings=SETTINGS)
    assert not service_runs(instance)
    assert running_release(instance) is None
    restart_service(instance, settings=SETTINGS)
    wait_until_ready(instance, FIRST_RELEASE, timeout_s=20)


def test_a_status_that_says_neither_yes_nor_no_is_an_error(local):
    vague = CommandService(start=("true",), stop=("true",), status=("sh", "-c", "echo lost; exit 1"))
    with pytest.raises(CommandError, match="exited 1: lost"):
        service_runs(local.model_copy(update={"service": vague}))


# --- waiting and testing ---------------------------------------------------------------------------


def test_waiting_takes_as_long_as_the_release_needs(web, local):
    update(web, local, Behaviour(ready_after_s=1.5))
    assert 0.1 < wait_until_ready(local, NEXT_RELEASE, timeout_s=20) < 20


def test_a_release_that_says_another_version_is_not_ready(web, local):
    update(web, local, Behaviour(wrong_version=True))
    with pytest.raises(NotReadyError, match=r"release 2\.0\.0-wrong answers .* its service runs"):
        wait_until_ready(local, NEXT_RELEASE, timeout_s=1)


def test_a_service_that_ended_is_not_waited_for(web, instance):
    update(web, instance, Behaviour(fails_to_start=True))
    began = time.monotonic()
    with pytest.raises(NotReadyError, match=r"nothing healthy answers .* its service has ended"):
        wait_until_ready(instance, NEXT_RELEASE, timeout_s=60)
    assert time.monotonic() - began < 30


def test_waiting_ends_when_the_deployment_may_not_go_on(web, local):
    def revoked() -> None:
        raise RevokedError("the run was cancelled")

    update(web, local, Behaviour(ready_after_s=30))
    with pytest.raises(RevokedError):
        wait_until_ready(local, NEXT_RELEASE, timeout_s=30, still_wanted=revoked)


@contextmanager
def answering(answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Answer what is wanted at each path; return the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_what_says_its_version_before_it_is_ready_runs_nothing_yet(local):
    answers = {"/model_info": (200, '{"weight_version": "2.0.0"}'), "/ready": (503, "")}
    with answering(answers) as url:
        probe = Probe(url=f"{url}/model_info", version_key="weight_version", ready_url=f"{url}/ready")
        asked = local.model_copy(update={"probe": probe})
        assert running_release(asked) is None
        answers["/ready"] = (200, "")
        assert running_release(asked) == "2.0.0"
        answers["/model_info"] = (503, '{"weight_version": "2.0.0"}')
        assert running_release(asked) is None
    assert running_release(asked) is None


def test_a_node_is_asked_for_where_its_cluster_lists_it(local):
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", "node-1", "r1")]
        asked = local.model_copy(update={"probe": head.probe("node-1")})
        assert running_release(asked) == "r1"
        assert wait_until_ready(asked, "r1", timeout_s=5) < 5
        with pytest.raises(NotReadyError, match=r"release r1 answers at http://.*/api/v0/nodes"):
            wait_until_ready(asked, "r2", timeout_s=0)
        head.rows["nodes"] = []
        assert running_release(asked) is None


def with_tests(web: LabApplication, *tests: SmokeTest, script: str = "") -> Fleet:
    return web.fleet.model_copy(update={"smoke_tests": tests, "smoke_script": script})


def test_smoke_tests_that_get_what_they_expect_pass(web, local):
    fleet = with_tests(
        web,
        SmokeTest(path="/health"),
        SmokeTest(path="/echo?x=1", method="POST", body="{}"),
        script='[[ "$INSTANCE, $RELEASE, $INSTANCE_URL" = "blue-1, 1.0.0, http://127.0.0.1:"*/ ]]',
    )
    smoke_test(local, fleet, release=FIRST_RELEASE, settings=SETTINGS)


def test_a_smoke_test_with_another_answer_fails_and_shows_it(web, local):
    fleet = with_tests(web, SmokeTest(path="/health", expected_status=204))
    with pytest.raises(StepFailedError, match=r"GET /health answered 200, expected 204: .*healthy"):
        smoke_test(local, fleet, release=FIRST_RELEASE, settings=SETTINGS)


def test_a_smoke_test_without_an_answer_fails(web, local):
    stop_service(local, settings=SETTINGS)
    with pytest.raises(StepFailedError, match="ConnectError"):
        smoke_test(local, with_tests(web, SmokeTest(path="/")), release=FIRST_RELEASE, settings=SETTINGS)


def test_a_smoke_script_fails_at_its_first_failed_command(web, local):
    fleet = with_tests(web, script='echo "asked $INSTANCE_URL"; false; echo fine')
    with pytest.raises(CommandError, match="exited 1: asked http") as caught:
        smoke_test(local, fleet, release=FIRST_RELEASE, settings=SETTINGS)
    assert "fine" not in caught.value.output
