"""Restic: files backed up to a repository, and let go after their time.

A snapshot gets its deployment's tag only when it is proven whole, so that a retry never takes half a one for
the backup. Secrets reach restic by its environment alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from blocks.restic import ResticAccess
from rules.backup import (
    PREFIX,
    BackupTaken,
    Loss,
    ResticSnapshot,
    Stored,
    backup_name,
    expired,
    moved,
    overlapping,
    parse_snapshots,
    parse_summary,
)
from rules.environment import BlockReference
from rules.errors import CommandError, DeployError
from rules.finding import Finding
from rules.frozen import Name
from tasks import zfs
from tasks.host import exists, free_bytes, run
from tasks.process import Finished
from tasks.settings import Settings

_UNREADABLE = 3
_LOCKED = 11  # restic 0.17 and newer; before it is 1 like all else
_UNPROVEN = "unproven-"


class BackupError(DeployError):
    """A backup was not taken as it should be; says what was left where."""


def initialise(restic: ResticAccess) -> None:
    """Make the repository, if there is none yet.

    Raises:
        CommandError: it cannot be made.
    """
    if command(restic, ("cat", "config"), check=False).returncode:
        command(restic, ("init",))


def take(
    restic: ResticAccess, source: BlockReference, *, deployment: Name, settings: Settings
) -> BackupTaken:
    """Back the paths up for the deployment, or find the snapshot that it has already; return it.

    Raises:
        BackupError: a path is missing or cannot be read; the repository has no snapshot of it.
        CommandError: restic failed; the repository has no snapshot for this deployment.
    """
    origin = (
        zfs.take(restic.source, source, deployment=deployment, settings=settings) if restic.source else None
    )
    paths, label = _paths(restic, settings), backup_name(deployment)
    before = snapshots(restic, paths)
    found = [each for each in before if label in each.tags]
    size_bytes = None
    if not found:
        with readable(restic, origin, settings):
            _require(restic, paths)
            _forget(restic, [each.id for each in before if _UNPROVEN + deployment in each.tags])
            size_bytes = _back_up(restic, paths, deployment=deployment)
        found = [each for each in snapshots(restic, paths) if label in each.tags]
    if not found:
        raise BackupError(f"restic backed up something else than {list(paths)}, under the tag {label}")
    return BackupTaken(
        source=source,
        kind="restic",
        identity=found[0].id,
        taken_at=origin.taken_at if origin else found[0].time,
        size_bytes=size_bytes,
        position=origin.identity if origin else "",
        details={"deployment": deployment, "paths": "\n".join(paths)},
    )


def prune(restic: ResticAccess, *, now: datetime, keep_s: float, settings: Settings) -> tuple[str, ...]:
    """Let the snapshots of ours that are older than `keep_s` go, with their data; return their ids.

    Those of other paths, hosts or names stay. With a ZFS source its snapshots are pruned as well.

    Raises:
        CommandError: restic failed; doing it again is harmless.
    """
    found = snapshots(restic, _paths(restic, settings))
    old = expired((_stored(each) for each in found), now=now, keep_s=keep_s)
    removed = tuple(each.identity for each in old)
    # half ones that a killed backup left, as soon as it cannot be running any more
    ended = now - timedelta(seconds=restic.timeout_s)
    broken = [each.id for each in found if _is_unproven(each) and each.time < ended]
    if removed or broken:
        command(restic, ("forget", "--prune", *removed, *broken))
    if restic.source:
        removed += zfs.prune(restic.source, now=now, keep_s=keep_s, settings=settings)
    return removed


def loss(restic: ResticAccess, taken: BackupTaken, *, now: datetime, settings: Settings) -> Loss:
    """Return what restoring the snapshot would lose: how long ago it was, and with a ZFS source how much.

    Raises:
        CommandError: the source cannot be read.
    """
    if restic.source and taken.position:
        origin = taken.model_copy(update={"identity": taken.position})
        lost = zfs.loss(restic.source, origin, now=now, settings=settings)
        return Loss.of(taken, now=now, lost_bytes=lost.lost_bytes, what="written since")
    return Loss.of(taken, now=now, lost_bytes=None, what="was written since")


def plan(restic: ResticAccess, *, settings: Settings) -> Finding:
    """Return whether the repository answers with this password, and all paths are there; changes nothing."""
    answered = command(restic, ("cat", "config", "--no-lock"), check=False)
    if answered.returncode:
        return Finding.failed(f"{restic.repository}: {answered.stderr.strip() or 'no answer'}")
    if restic.source:
        source = zfs.plan(restic.source, settings=settings)
        if source.result != "passed":
            return source
    try:
        _paths(restic, settings)
        _require(restic, restic.paths)
    except BackupError as error:
        return Finding.failed(str(error))
    return Finding.passed(f"{restic.repository} answers, and {', '.join(restic.paths)} are there")


def answers(restic: ResticAccess) -> Finding:
    """Return whether the repository answers with this password."""
    answered = command(restic, ("cat", "config", "--no-lock"), check=False)
    said = answered.stderr.strip() or "no answer"
    words = f"{restic.repository} {'answers' if answered.returncode == 0 else f'does not answer: {said}'}"
    return Finding.judged(words, ok=answered.returncode == 0)


def storage(restic: ResticAccess) -> Finding:
    """Return whether a repository in a directory has room for all the paths once more.

    Raises:
        CommandError: a path cannot be measured.
    """
    if restic.is_remote:
        return Finding.not_applicable(f"{restic.repository} does not tell how much it has room for")
    measured = run(restic.host, ("du", "-sB1", "-c", "--", *restic.paths), timeout_s=restic.timeout_s)
    needed, free = (
        int(measured.stdout.splitlines()[-1].split()[0]),
        free_bytes(restic.host, restic.repository),
    )
    words = f"{restic.repository} has {free} bytes free, the paths have {needed}"
    return Finding.judged(words, ok=free >= needed)


def _back_up(restic: ResticAccess, paths: tuple[str, ...], *, deployment: Name) -> int:
    """Make the snapshot, prove that it is whole, and give it the deployment's tag; return its bytes."""
    tag = _UNPROVEN + deployment
    words = ("backup", "--json", "--host", restic.host.name, "--tag", tag, *paths)
    ended = command(restic, words, check=False)
    if ended.returncode not in {0, _UNREADABLE}:
        raise CommandError(("restic", *words), restic.host.name, ended.returncode, ended.stderr)
    snapshot, size_bytes = parse_summary(ended.stdout)
    if ended.returncode == _UNREADABLE:
        _forget(restic, [snapshot])
        raise BackupError(
            f"restic could not read all of {list(paths)}: {ended.stderr.strip()[-800:]}. The snapshot that "
            "lacks it was removed from the repository. Make it readable, or leave it out, and deploy again."
        )
    # a new tag means a new id: what bears the deployment's tag is whole
    command(restic, ("tag", "--set", backup_name(deployment), snapshot))
    return size_bytes


def _forget(restic: ResticAccess, ids: list[str]) -> None:
    if ids:
        command(restic, ("forget", *ids))


def _require(restic: ResticAccess, paths: tuple[str, ...]) -> None:
    # restic itself backs the others up and exits 0
    if missing := [path for path in paths if not exists(restic.host, path)]:
        raise BackupError(
            f"{missing} are not there on {restic.host.name}: nothing was backed up. Correct the paths."
        )


def _paths(restic: ResticAccess, settings: Settings) -> tuple[str, ...]:
    """Return the paths as restic reads them: as they are, or where they lie in the source's clone."""
    if not restic.source:
        return restic.paths
    places = zfs.mountpoints(restic.source, settings=settings)
    own = places.pop(restic.source.dataset, None)
    if own is None:
        raise BackupError(f"{restic.source.dataset} is not mounted, so its paths cannot be told. Mount it.")
    for path in restic.paths:
        if children := overlapping(path, places):
            raise BackupError(
                f"{path} lies partly in {list(children)}, which a snapshot of {restic.source.dataset} does "
                "not hold: nothing was backed up. Give these datasets blocks of their own, leave them out."
            )
    try:
        return tuple(moved(path, own, restic.source.reading_place) for path in restic.paths)
    except ValueError as error:
        raise BackupError(
            f"{error}, the mountpoint of {restic.source.dataset}: nothing was backed up"
        ) from error


@contextmanager
def readable(restic: ResticAccess, origin: BackupTaken | None, settings: Settings) -> Iterator[None]:
    """Have the source's snapshot mounted meanwhile, if there is a source.

    Raises:
        CommandError: it could not be mounted or unmounted.
    """
    if restic.source and origin:
        with zfs.reading(restic.source, origin.identity, settings=settings):
            yield
    else:
        yield


# --- restic ----------------------------------------------------------------------------------------


def snapshots(restic: ResticAccess, paths: tuple[str, ...]) -> tuple[ResticSnapshot, ...]:
    """Return the snapshots of exactly these paths of this host, oldest first.

    Raises:
        CommandError: the repository does not answer.
    """
    listed = parse_snapshots(command(restic, ("snapshots", "--json", "--host", restic.host.name)).stdout)
    return tuple(each for each in listed if set(each.paths) == set(paths))


def _stored(snapshot: ResticSnapshot) -> Stored:
    ours = next((tag for tag in snapshot.tags if tag.startswith(PREFIX)), "")
    return Stored(identity=snapshot.id, label=ours, taken_at=snapshot.time)


def _is_unproven(snapshot: ResticSnapshot) -> bool:
    return any(tag.startswith(_UNPROVEN) for tag in snapshot.tags)


def command(restic: ResticAccess, words: tuple[str, ...], *, check: bool = True) -> Finished:
    """Run restic; a lock that a killed one left, which restic itself knows as stale, is removed once.

    Raises:
        CommandError: it failed and `check`, or it took too long.
    """
    ended = _restic(restic, words)
    if ended.returncode and (ended.returncode == _LOCKED or "already locked" in ended.stderr):
        _restic(restic, ("unlock",))
        ended = _restic(restic, words)
    if check and ended.returncode:
        raise CommandError(ended.argv, restic.host.name, ended.returncode, ended.output)
    return ended


def _restic(restic: ResticAccess, words: tuple[str, ...]) -> Finished:
    secret = {name: value.get_secret_value() for name, value in restic.environment.items()}
    environment = {
        "LC_ALL": "C",
        **secret,
        "RESTIC_REPOSITORY": restic.repository,
        "RESTIC_PASSWORD": restic.password.get_secret_value(),
    }
    return run(restic.host, ("restic", *words), timeout_s=restic.timeout_s, env=environment, check=False)
