"""An update of one instance, step by step, as tests want it to stop anywhere."""

from __future__ import annotations

from pathlib import Path

import httpx

from lab.application import LabApplication
from lab.releases import GOOD, Behaviour
from rules.change import ApplicationRelease
from rules.fleet import Instance
from tasks.application import restart_service, stage_release, switch_release, wait_until_ready
from tasks.settings import Settings

SETTINGS = Settings()
INSTANCE, DEPLOYMENT, NEXT_RELEASE = "blue-1", "web-1", "2.0.0"


def stage(instance: Instance, change: ApplicationRelease, settings: Settings = SETTINGS) -> None:
    """Stage a release for the deployment that all these tests are."""
    stage_release(instance, change, deployment=DEPLOYMENT, settings=settings)


def update(web: LabApplication, instance: Instance, behaviour: Behaviour = GOOD) -> None:
    """Do all of an update but wait for it."""
    change = web.change(NEXT_RELEASE, behaviour)
    stage(instance, change)
    switch_release(instance, change.pointer)
    restart_service(instance, settings=SETTINGS)


def updated(web: LabApplication, instance: Instance) -> None:
    """Do all of an update."""
    update(web, instance)
    wait_until_ready(instance, NEXT_RELEASE, timeout_s=20)


def pid(instance: Instance) -> int:
    """Return the process that answers."""
    return int(httpx.get(instance.probe.url).json()["pid"])


def releases(web: LabApplication) -> Path:
    """Return the directory of the instance's releases."""
    return web.root(INSTANCE) / "releases"


def files(web: LabApplication) -> list[str]:
    """Return all that lies among the releases, hidden or not."""
    return sorted(entry.name for entry in releases(web).iterdir())
