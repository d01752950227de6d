"""Build the system of a NixOS host, and have it in that host's store. Nothing live is touched.

A build is repeated with the same result: from a channel it is made from a directory that is named by its
content, from a flake from a locked reference. So what is deployed is what the plan showed, or an error.
"""

from __future__ import annotations

import json

from pydantic import TypeAdapter, ValidationError

from rules.errors import CommandError, InvalidRequestError, StepFailedError
from rules.fleet import Instance
from rules.nixos import StorePath
from rules.nixos_activation import end_of_log
from rules.system_change import NixosChannel, NixosClosures, NixosFlake, SystemRelease
from tasks import host as hosts
from tasks.nixos_channel import live_source
from tasks.nixos_store import EXPERIMENTAL, Nix, disk_hint, lacking, nix_of, nix_of_worker
from tasks.process import Finished

_TOPLEVEL = "config.system.build.toplevel"
#: Inputs that are in no lock file are refused: they may be others each time. And no lock file is written.
_AS_LOCKED = "--no-update-lock-file"
_ASK_TIMEOUT_S = 300.0
#: What nix-build exits with when a builder failed; other codes are an evaluation that failed, mostly.
_BUILDER_FAILED = 100
# bash, for pipefail: an export that breaks off must not look like a whole one
_COPY = """\
set -o pipefail
count=$1
shift
import=("${@:1:count}")
shift "$count"
"$0" --export "$@" | "${import[@]}" >/dev/null
"""
_STORE_PATH: TypeAdapter[str] = TypeAdapter(StorePath)


class BuildFailedError(StepFailedError):
    """A system could not be built or fetched; nothing live was touched."""


def build_system(instance: Instance, change: SystemRelease, *, channel: str | None) -> StorePath:
    """Build a host's new system and return its store path, in the store of whoever built it.

    Args:
        instance: the host.
        change: where the system comes from.
        channel: directory with the channel's content, in the host's store; for a channel's release only.

    Raises:
        BuildFailedError: it could not be evaluated, built, fetched, or not in time.
        InvalidRequestError: the change says nothing of this host.
        CommandError: the host cannot be reached.
    """
    match change.source:
        case NixosChannel():
            return _build_from_channel(instance, channel or live_source(instance))
        case NixosFlake():
            return _build_from_flake(instance, change.source.flake, builder(instance, change))
        case NixosClosures():
            return _realise(instance, _closure_of(instance, change.source))


def ensure_system(instance: Instance, change: SystemRelease, path: StorePath) -> None:
    """Have a system in the host's store: it is there, or is fetched, built again or copied.

    Raises:
        BuildFailedError: it cannot be had, or what is built now is another one.
        CommandError: the host cannot be reached, or a copy broke off.
    """
    if not lacking(nix_of(instance), (path,)):
        return
    if isinstance(change.source, NixosClosures):
        _realise(instance, path)
        return
    built = build_system(instance, change, channel=None)
    if built != path:
        raise BuildFailedError(
            f"{instance.name}: {path} is not in its store any more, and what is built now is {built}: the "
            "source or the configuration has changed since the plan was made. The system that runs and the "
            "one that boots were not touched. Deploy again, for a plan with what it is now."
        )
    bring_system(instance, change, built)


def bring_system(instance: Instance, change: SystemRelease, path: StorePath) -> None:
    """Copy from the worker what the host lacks of a system that the worker built; otherwise do nothing.

    Raises:
        CommandError: the copy broke off; what arrived is kept, and asked for no second time.
    """
    worker, host = builder(instance, change), nix_of(instance)
    if worker == host:
        return
    closure = worker.run("nix-store", "--query", "--requisites", path, timeout_s=_ASK_TIMEOUT_S)
    missing = lacking(host, tuple(closure.stdout.split()))
    if not missing:
        return
    into = hosts.ssh_argv(instance.host, (host.program("nix-store"), "--import"))
    words = (worker.program("nix-store"), str(len(into)), *into, *missing)
    try:
        hosts.run(worker.host, ("bash", "-c", _COPY, *words), timeout_s=instance.nixos_host.build_s)
    except CommandError as error:
        raise CommandError(
            (*into[:1], "…", host.program("nix-store"), "--import", f"({len(missing)} paths of {path})"),
            instance.host.name,
            error.returncode,
            error.output + disk_hint(instance.host, error.output, near=path),
        ) from error


def builder(instance: Instance, change: SystemRelease) -> Nix:
    """Return Nix where this change is built for a host: there, or on the worker."""
    on_worker = isinstance(change.source, NixosFlake) and instance.nixos_host.build_on == "worker"
    return nix_of_worker(instance) if on_worker else nix_of(instance)


def locked(instance: Instance, change: SystemRelease) -> SystemRelease:
    """Return a flake's release with a reference that means one content for ever; others as they are.

    Raises:
        InvalidRequestError: the flake has changes that nobody committed.
        BuildFailedError: the flake cannot be read.
        CommandError: the host cannot be reached.
    """
    if not isinstance(change.source, NixosFlake):
        return change
    nix, flake = builder(instance, change), change.source.flake
    # --refresh: Nix would take a branch for an hour as it was
    words = (*EXPERIMENTAL, "flake", "metadata", "--refresh", "--json", _AS_LOCKED, flake)
    asked = _bounded(instance, nix, "nix", *words)
    if asked.returncode:
        raise BuildFailedError(f"The flake {flake} cannot be read on {nix.host.name}: {_end(asked)}")
    url = str(json.loads(asked.stdout)["url"])
    if "narHash=" not in url and "rev=" not in url and f"/{_revision(asked.stdout)}" not in url:
        raise InvalidRequestError(
            f"The flake {flake} has changes that are not committed, so it names no one content: what is "
            "approved might not be what is deployed. Commit them, and deploy again."
        )
    return change.model_copy(update={"source": NixosFlake(flake=url)})


def _revision(metadata: str) -> str:
    """Return the commit; of github:owner/name/… it is a part of the path. A word that is in none: unknown."""
    return str(json.loads(metadata).get("revision") or "(no revision)")


# --- each source ---------------------------------------------------------------------------------------


def _build_from_channel(instance: Instance, directory: str) -> StorePath:
    places = instance.nixos_host.places
    words = (
        *("<nixpkgs/nixos>", "-A", _TOPLEVEL, "--no-out-link"),
        *("-I", f"nixpkgs={directory}", "-I", f"nixos-config={places.configuration}"),
        # other channels, which a configuration may import from
        *("-I", places.channels),
    )
    nix = nix_of(instance)
    built = _bounded(instance, nix, "nix-build", *words)
    if built.returncode:
        raise _failed(instance, nix, built, what=f"The system of {places.configuration}")
    return _store_path(instance, built.stdout.strip().rpartition("\n")[2])


def _build_from_flake(instance: Instance, flake: str, nix: Nix) -> StorePath:
    name = instance.nixos_host.attribute or instance.name
    wanted = f'{flake}#nixosConfigurations."{name}".{_TOPLEVEL}'
    # not --print-out-paths: Nix 2.8 does not know it
    built = _bounded(instance, nix, "nix", *EXPERIMENTAL, "build", "--no-link", "--json", _AS_LOCKED, wanted)
    if built.returncode:
        raise _failed(instance, nix, built, what=wanted)
    return _store_path(instance, json.loads(built.stdout)[0]["outputs"]["out"])


def _realise(instance: Instance, path: StorePath) -> StorePath:
    nix = nix_of(instance)
    realised = _bounded(instance, nix, "nix-store", "--realise", path)
    if realised.returncode or lacking(nix, (path,)):
        raise _failed(instance, nix, realised, what=path)
    return path


def _closure_of(instance: Instance, source: NixosClosures) -> StorePath:
    if instance.name not in source.paths:
        raise InvalidRequestError(
            f"There is no system for {instance.name} among the closures, only for "
            f"{', '.join(sorted(source.paths))}. Give its store path too."
        )
    return source.paths[instance.name]


def _bounded(instance: Instance, nix: Nix, program: str, *words: str) -> Finished:
    """Run what may take as long as a build, and return how it ended."""
    try:
        return nix.run(program, *words, timeout_s=instance.nixos_host.build_s, check=False)
    except hosts.HostUnreachableError:
        raise
    except CommandError as error:
        raise BuildFailedError(
            f"{instance.name}: {program} did not end within {instance.nixos_host.build_s:g} s and was ended: "
            f"{end_of_log(error.output)}\nDeploy again to go on where it stopped, with a longer build_s."
        ) from error


def _failed(instance: Instance, nix: Nix, finished: Finished, *, what: str) -> BuildFailedError:
    if finished.argv[0].endswith("nix-store"):
        happened = "is neither in its store nor to be had from its substituters"
    elif finished.returncode == _BUILDER_FAILED or "builder for" in finished.stderr:
        happened = "could not be built"
    else:
        happened = "could not be evaluated or fetched"
    near = instance.nixos_host.places.profile
    return BuildFailedError(
        f"{instance.name}: {what} {happened} on {nix.host.name} (exit code {finished.returncode}): "
        f"{_end(finished)}{disk_hint(nix.host, finished.stderr, near=near)}"
    )


def _end(finished: Finished) -> str:
    return end_of_log(finished.stderr) or "(it said nothing)"


def _store_path(instance: Instance, said: str) -> StorePath:
    try:
        return _STORE_PATH.validate_python(said)
    except ValidationError as error:
        raise BuildFailedError(
            f"{instance.name}: the build ended well, but printed {said[:200]!r} instead of a store path."
        ) from error
