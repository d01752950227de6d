"""A real Ray cluster for tests of tasks, and its nodes as they were before a test."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

import pytest

from lab.processes import wait_until
from lab.ray_cluster import LabRay, RayBehaviour
from rules.change import RayRelease
from rules.undo import RestoreNode
from tasks import ray_cluster as ray
from tasks import ray_jobs
from tasks.application import current_release, running_release, stage_release, switch_release
from tasks.ray_node import restart_node, restore_node
from tasks.settings import Settings
from tests.requirements import need_ray

SETTINGS = Settings()
DEPLOYMENT, DRIVER = "ray-1", "test.driver"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabRay]:
    """A head and two workers of release r1, and a third node's host with nothing on it."""
    need_ray()
    with LabRay(tmp_path_factory.mktemp("ray"), workers=2, spares=1) as running:
        yield running


@pytest.fixture
def recorded(lab: LabRay) -> Iterator[Callable[[str], RestoreNode]]:
    """Give the way back of a node that a test is about to change; it is taken after the test."""
    steps: dict[str, RestoreNode] = {}

    def record(name: str) -> RestoreNode:
        node = ray.node_of(lab.cluster, name)
        instance = lab.fleet.instance(name)
        steps[name] = RestoreNode(
            instance=name,
            release=current_release(instance),
            running=running_release(instance),
            node_id=node.node_id if node else None,
            drain_s=2,
        )
        return steps[name]

    yield record
    ray_jobs.discard(lab.cluster, DRIVER)
    for name, step in steps.items():
        restore_node(lab.fleet, lab.fleet.instance(name), step, settings=SETTINGS)


def change(lab: LabRay, release: str, behaviour: RayBehaviour = "good") -> RayRelease:
    """Pack a release, and return the change that brings it to the nodes."""
    return RayRelease(cluster=lab.name, release=release, artefact=lab.archive(release, behaviour))


def bring(lab: LabRay, name: str, wanted: RayRelease) -> None:
    """Stage, switch and restart: all of an update but draining and proving."""
    instance = lab.fleet.instance(name)
    stage_release(instance, wanted, deployment=DEPLOYMENT, settings=SETTINGS)
    switch_release(instance, wanted.pointer)
    restart_node(lab.fleet, instance, settings=SETTINGS)


def hold(lab: LabRay, program: str, *, task_name: str) -> None:
    """Have a driver run on the head, in Python, and return once its task of that name runs."""
    ray_jobs.discard(lab.cluster, DRIVER)
    command = shlex.join(("python", "-c", program))
    ray_jobs.submit(lab.cluster, command, job_id=DRIVER, host=None, env={})
    wait_until(
        lambda: task_name in {task.name for task in ray.tasks(lab.cluster)},
        timeout_s=90,
        what=f"{task_name} to run",
    )
