"""Keep the systems of a deployment from the garbage collector: the new one, and those of the way back."""

from __future__ import annotations

from pathlib import PurePosixPath

from rules.errors import CommandError, StepFailedError
from rules.fleet import Instance
from rules.nixos import StorePath
from rules.nixos_actions import StageSystem
from rules.system_change import SystemRelease
from tasks import host as hosts
from tasks.nixos_build import ensure_system
from tasks.nixos_reading import resolved
from tasks.nixos_store import nix_of


def stage_system(instance: Instance, change: SystemRelease, action: StageSystem, *, deployment: str) -> None:
    """Have the new system on the host, and roots for it and for all that the way back needs.

    Raises:
        StepFailedError: one of them cannot be had, or is not kept; nothing live was touched.
        CommandError: the host cannot be reached.
    """
    # the way back first: while the new one is built, nobody may collect the old ones
    directory = roots_of(instance, deployment)
    hosts.run(instance.host, ("mkdir", "-p", "--", directory))
    for number, path in enumerate(dict.fromkeys(action.before)):
        _keep(instance, path, f"{directory}/before-{number}")
    ensure_system(instance, change, action.path)
    _keep(instance, action.path, f"{directory}/new")


def _keep(instance: Instance, path: StorePath, link: str) -> None:
    try:
        nix_of(instance).run("nix-store", "--realise", path, "--add-root", link)
    except hosts.HostUnreachableError:
        raise
    except CommandError as error:
        raise StepFailedError(
            f"{instance.name}: {path} cannot be kept from the garbage collector: {error}. The system that "
            "runs and the one that boots were not touched."
        ) from error
    if (kept := resolved(instance.host, (link,))[0]) != path:
        raise StepFailedError(
            f"{instance.name}: {link} should keep {path} from the garbage collector, but leads to {kept}. "
            "The system that runs and the one that boots were not touched."
        )


def drop_roots(instance: Instance, *, deployment: str) -> None:
    """Remove the roots that a deployment made; none there is fine. No system is removed by that.

    Raises:
        CommandError: the host cannot be reached, or does not let us.
    """
    directory = roots_of(instance, deployment)
    hosts.run(instance.host, ("rm", "-rf", "--", directory))
    # others may have theirs there, and nobody may have had any
    parent = str(PurePosixPath(directory).parent)
    hosts.run(instance.host, ("rmdir", "--ignore-fail-on-non-empty", "--", parent), check=False)


def roots_of(instance: Instance, deployment: str) -> str:
    """Return the directory on the host that has a deployment's roots."""
    return f"{instance.nixos_host.places.state}/roots/{deployment}"
