"""The application component's effects on one instance, and reads of it.

Every effect is idempotent and names an absolute state. All commands are argv lists that run on the
instance's host, so a local instance and one behind ssh are treated alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx

from rules.change import ApplicationRelease, NixStorePath, RayRelease, ReleaseArchive
from rules.errors import StepFailedError, UndoFailedError
from rules.fleet import (
    CommandService,
    Fleet,
    HostService,
    Instance,
    InstanceState,
    NixProfile,
    Probe,
    ReleaseDirectory,
    SystemdService,
)
from rules.nixos import NixosProbe
from rules.ray_cluster import RayNodeProbe
from rules.undo import RemoveRelease, RestoreModel, RestoreRelease
from tasks import host as hosts
from tasks import ray_cluster
from tasks.http_client import http
from tasks.nixos_verify import running_system
from tasks.server_service import is_running, systemctl, whole_host
from tasks.settings import Settings

_CHECKSUM_FILE = ".sha256"
_LABELS_FILE = "labels.yaml"
_POLL_S = 0.1
_TRIES = 3


class NotReadyError(StepFailedError):
    """An instance did not become ready, or runs another release than it should."""


# --- reads -----------------------------------------------------------------------------------------


def read_instance(instance: Instance) -> InstanceState:
    """Return what an instance has and runs."""
    return InstanceState(
        release=current_release(instance),
        running=settled_release(instance),
        releases=staged_releases(instance),
    )


def settled_release(instance: Instance, *, pause_s: float = _POLL_S) -> str | None:
    """Return the release that answers; a service that runs but is slow to answer is asked again.

    What is read here is what a rollback returns to: one slow answer must not make it "nothing runs".
    """
    for _ in range(_TRIES):
        release = running_release(instance)
        if release is not None or not service_runs(instance):
            return release
        time.sleep(pause_s)
    return None


def current_release(instance: Instance) -> str | None:
    """Return the release id (directory) or store path (Nix profile) an instance points to; None: none."""
    match instance.layout:
        case ReleaseDirectory():
            target = hosts.read_link(instance.host, f"{instance.layout.root}/current")
            return PurePosixPath(target).name if target else None
        case NixProfile():
            if not hosts.exists(instance.host, instance.layout.profile):
                return None
            argv = ("readlink", "-f", "--", instance.layout.profile)
            return hosts.run(instance.host, argv).stdout.strip()


def staged_releases(instance: Instance) -> tuple[str, ...]:
    """Return the releases that lie ready on an instance's host, sorted; nothing for a Nix profile."""
    if not isinstance(instance.layout, ReleaseDirectory):
        return ()
    releases = f"{instance.layout.root}/releases"
    if not hosts.exists(instance.host, releases):
        return ()
    argv = ("find", releases, "-mindepth", "1", "-maxdepth", "1", "-type", "d", "-printf", "%f\\n")
    names = hosts.run(instance.host, argv).stdout.splitlines()
    return tuple(sorted(name for name in names if not name.startswith(".")))


def running_release(instance: Instance) -> str | None:
    """Return the release that answers the instance's probe; None when nothing healthy answers."""
    match instance.probe:
        case Probe():
            return _answering_release(instance.probe)
        case RayNodeProbe():
            return ray_cluster.running_release(instance.probe)
        case NixosProbe():
            return running_system(instance.host, instance.probe)


def _answering_release(probe: Probe) -> str | None:
    try:
        if probe.ready_url and not http().get(probe.ready_url, timeout=probe.timeout_s).is_success:
            return None
        answer = http().get(probe.url, timeout=probe.timeout_s)
        if answer.status_code != httpx.codes.OK:
            return None
        version = answer.json().get(probe.version_key)
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
    return str(version) if version is not None else None


def service_runs(instance: Instance) -> bool:
    """Return whether the instance's service is running, by its own status command.

    Raises:
        CommandError: the status command said neither yes nor no.
    """
    return is_running(instance.host, instance.service)


# --- effects ---------------------------------------------------------------------------------------


def stage_release(
    instance: Instance, change: ApplicationRelease | RayRelease, *, deployment: str, settings: Settings
) -> None:
    """Put the release beside the others on the instance's host; the running one is not touched.

    A node's release gets a `labels.yaml`, which the node is started with: its name, and the release.

    Raises:
        StepFailedError: the checksum is wrong, the disk too full, or another release has this id.
        CommandError: a command on the host failed.
    """
    match change.artefact, instance.layout:
        case NixStorePath(), NixProfile():
            hosts.run(
                instance.host, ("nix-store", "--realise", change.artefact.path), timeout_s=_slow(settings)
            )
        case ReleaseArchive(), ReleaseDirectory():
            _stage_archive(
                instance, change, root=instance.layout.root, deployment=deployment, settings=settings
            )
        case _:
            raise StepFailedError(f"{instance.name}: {change.artefact.artefact} does not fit its layout")


def _slow(settings: Settings) -> float:
    return settings.command_timeout_s


def _stage_archive(
    instance: Instance,
    change: ApplicationRelease | RayRelease,
    *,
    root: str,
    deployment: str,
    settings: Settings,
) -> None:
    archive = change.artefact
    assert isinstance(archive, ReleaseArchive)  # noqa: S101 - narrowed by the caller
    host, final = instance.host, f"{root}/releases/{change.release}"
    if hosts.exists(host, final):
        _refuse_other_content(instance, final, archive=archive)
        _label(instance, change, final)
        return
    partial = f"{root}/releases/.staging-{deployment}"
    hosts.run(host, ("rm", "-rf", "--", partial))
    hosts.run(host, ("mkdir", "-p", "--", f"{partial}/tree"))
    _refuse_full_disk(instance, archive, directory=partial, reserve=settings.staging_reserve_ratio)
    hosts.copy_file(host, archive.path, f"{partial}/archive")
    received = hosts.sha256(host, f"{partial}/archive")
    if received != archive.sha256:
        raise StepFailedError(
            f"{instance.name}: the archive arrived with sha256 {received}, not {archive.sha256}; it was not "
            "unpacked and the running release was not touched. Check the archive and the request's sha256."
        )
    tree = f"{partial}/tree"
    unpack = ("tar", "--extract", "--no-same-owner", "--file", f"{partial}/archive", "--directory", tree)
    hosts.run(host, unpack, timeout_s=_slow(settings))
    _label(instance, change, tree)
    hosts.write_file(host, f"{tree}/{_CHECKSUM_FILE}", f"{received}\n".encode())
    hosts.run(host, ("sync", "--file-system", tree), timeout_s=_slow(settings))
    hosts.run(host, ("mv", "-T", "--", tree, final))
    hosts.run(host, ("rm", "-rf", "--", partial))


def _label(instance: Instance, change: ApplicationRelease | RayRelease, tree: str) -> None:
    """Have the labels of a node's release in its directory; other releases have none."""
    if not isinstance(change, RayRelease):
        return
    path = f"{tree}/{_LABELS_FILE}"
    # quoted: a release such as 1.0 would be a number, which Ray refuses
    labels = f'host: "{instance.name}"\nrelease: "{change.release}"\n'
    if hosts.run(instance.host, ("cat", "--", path), check=False).stdout != labels:
        hosts.write_file(instance.host, path, labels.encode())


def _refuse_other_content(instance: Instance, final: str, *, archive: ReleaseArchive) -> None:
    finished = hosts.run(instance.host, ("cat", "--", f"{final}/{_CHECKSUM_FILE}"), check=False)
    if finished.stdout.strip() != archive.sha256:
        raise StepFailedError(
            f"{instance.name}: {final} is there already with other content (sha256 "
            f"{finished.stdout.strip() or 'unknown'}). A release id never changes its content: give the new "
            "one a new id, or remove that directory if nothing uses it. The running release was not touched."
        )


def _refuse_full_disk(instance: Instance, archive: ReleaseArchive, *, directory: str, reserve: float) -> None:
    needed = round(reserve * Path(archive.path).stat().st_size)
    free = hosts.free_bytes(instance.host, directory)
    if free < needed:
        raise StepFailedError(
            f"{instance.name}: {free:,} bytes free in {directory}, {needed:,} needed ({reserve:g} times the "
            "archive); nothing was unpacked. Make room and deploy again."
        )


def switch_release(instance: Instance, pointer: str) -> None:
    """Point an instance to a release: the link's target changes in one rename, or the profile is set."""
    match instance.layout:
        case ReleaseDirectory():
            hosts.replace_link(instance.host, f"{instance.layout.root}/current", f"releases/{pointer}")
        case NixProfile():
            hosts.run(instance.host, ("nix-env", "--profile", instance.layout.profile, "--set", pointer))


def restart_service(instance: Instance, *, settings: Settings) -> None:
    """Restart an instance's service, or start it when it is stopped."""
    match instance.service:
        case SystemdService():
            command, unit = systemctl(instance.service), instance.service.unit
            # a release that ends again and again uses up the unit's start limit: systemd would then refuse
            # the good one too. Without such a unit this fails, and the restart says so.
            hosts.run(instance.host, (*command, "reset-failed", unit), check=False)
            hosts.run(instance.host, (*command, "restart", unit), timeout_s=settings.command_timeout_s)
        case CommandService():
            hosts.run(instance.host, instance.service.stop, timeout_s=settings.command_timeout_s)
            hosts.run(instance.host, instance.service.start, timeout_s=settings.command_timeout_s)
        case HostService():
            raise whole_host(instance.host)


def stop_service(instance: Instance, *, settings: Settings) -> None:
    """Stop an instance's service; stopped already is fine."""
    match instance.service:
        case SystemdService():
            argv = (*systemctl(instance.service), "stop", instance.service.unit)
        case CommandService():
            argv = instance.service.stop
        case HostService():
            raise whole_host(instance.host)
    hosts.run(instance.host, argv, timeout_s=settings.command_timeout_s)


def wait_until_ready(
    instance: Instance, release: str, *, timeout_s: float, still_wanted: Callable[[], None] = lambda: None
) -> float:
    """Return how many seconds the instance took to answer its probe with `release`.

    Args:
        instance: the instance asked.
        release: what it must say that it runs.
        timeout_s: how long it may take.
        still_wanted: called between tries; raises when the deployment must not go on.

    Raises:
        NotReadyError: it did not in time, or its service ended; says what answers instead.
    """
    began = time.monotonic()
    while True:
        running = running_release(instance)
        if running == release:
            return time.monotonic() - began
        waited = time.monotonic() - began
        if waited > timeout_s or (waited > 1 and not service_runs(instance)):
            answer = f"release {running} answers" if running else "nothing healthy answers"
            state = "runs" if service_runs(instance) else "has ended"
            raise NotReadyError(
                f"{instance.name} is not ready with {release} after {waited:.1f} s (limit {timeout_s:g} s): "
                f"{answer} at {instance.probe.url}, its service {state}."
            )
        still_wanted()
        time.sleep(_POLL_S)


def smoke_test(instance: Instance, fleet: Fleet, *, release: str, settings: Settings) -> None:
    """Run the application's smoke tests against one instance.

    Raises:
        StepFailedError: a test did not get what it expects.
        CommandError: the smoke script failed; carries the end of its output.
    """
    base = httpx.URL(instance.probe.url)
    for test in fleet.smoke_tests:
        try:
            answer = http().request(
                test.method, base.join(test.path), content=test.body, timeout=settings.command_timeout_s
            )
        except httpx.HTTPError as error:
            raise StepFailedError(
                f"{instance.name}: smoke test {test.method} {test.path}: {error!r}"
            ) from error
        if answer.status_code != test.expected_status:
            raise StepFailedError(
                f"{instance.name}: smoke test {test.method} {test.path} answered {answer.status_code}, "
                f"expected {test.expected_status}: {answer.text[:300]}"
            )
    if fleet.smoke_script:
        environment = {"INSTANCE": instance.name, "INSTANCE_URL": str(base.join("/")), "RELEASE": release}
        hosts.run_script(fleet.smoke_script, env=environment, timeout_s=settings.command_timeout_s)


# --- the way back ----------------------------------------------------------------------------------


def restore_release(instance: Instance, step: RestoreRelease | RestoreModel, *, settings: Settings) -> None:
    """Have the recorded release pointed to and running; does nothing where that is so already.

    Raises:
        UndoFailedError: the recorded release does not come up.
        CommandError: a command on the host failed.
    """
    restore_pointer(instance, step.release)
    if step.running is None:
        stop_service(instance, settings=settings)
        return
    if running_release(instance) != step.running:
        restart_service(instance, settings=settings)
    wait_until_back(instance, step.running, pointer=step.release)


def wait_until_back(instance: Instance, running: str, *, pointer: str | None) -> None:
    """Wait until an instance answers with the release that ran before, its `pointer` restored.

    Raises:
        UndoFailedError: it does not in time; says what answers instead.
    """
    try:
        wait_until_ready(instance, running, timeout_s=instance.start_timeout_s)
    except NotReadyError as error:
        raise UndoFailedError(f"{instance.name} does not come back on {pointer}: {error}") from error


def restore_pointer(instance: Instance, pointer: str | None) -> None:
    """Have an instance point to a release, or to none; does nothing where that is so already."""
    if current_release(instance) == pointer:
        return
    if pointer is None:
        _remove_pointer(instance)
    else:
        switch_release(instance, pointer)


def _remove_pointer(instance: Instance) -> None:
    match instance.layout:
        case ReleaseDirectory():
            hosts.run(instance.host, ("rm", "-f", "--", f"{instance.layout.root}/current"))
        case NixProfile():
            hosts.run(instance.host, ("rm", "-f", "--", instance.layout.profile))


def remove_release(instance: Instance, step: RemoveRelease, *, deployment: str) -> None:
    """Remove what this deployment staged on an instance's host.

    Raises:
        UndoFailedError: the instance points to it, so it stays.
    """
    if not isinstance(instance.layout, ReleaseDirectory):
        return
    if current_release(instance) == step.release:
        raise UndoFailedError(f"{instance.name} still points to {step.release}: not removed")
    releases = f"{instance.layout.root}/releases"
    final, doomed = f"{releases}/{step.release}", f"{releases}/.staging-{deployment}"
    hosts.run(instance.host, ("rm", "-rf", "--", doomed))
    if hosts.exists(instance.host, final):
        # renamed before it is emptied: half a release under its own name would be taken for a staged one
        hosts.run(instance.host, ("mv", "-T", "--", final, doomed))
        hosts.run(instance.host, ("rm", "-rf", "--", doomed))
