"""Jobs that are submitted to a Ray cluster by its HTTP API: a canary on a node, and one that asks."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import httpx

from rules.frozen import Frozen
from rules.ray_cluster import RayCluster
from tasks.ray_api import RayClusterError, ask

_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_POLL_S = 0.5
_STOP_TIMEOUT_S = 6.0  # Ray gives a job 3 s to end before it kills it
_TAIL_CHARACTERS = 1500
#: So little of a node's own resource that any number of canaries fit beside whatever uses it.
_SHARE = 0.001

# The API lists actors, but not how often they may be restarted: the control store knows it. Whatever goes
# wrong here, then nothing is known of it.
_LIMITS = """\
import json, os
from ray._raylet import GcsClientOptions, GlobalStateAccessor
from ray.core.generated.gcs_pb2 import ActorTableData
address = os.environ["RAY_ADDRESS"]
store = GlobalStateAccessor(
    GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
)
store.connect()
actors = map(ActorTableData.FromString, store.get_actor_table(None, None))
print("LIMITS " + json.dumps({actor.actor_id.hex(): actor.max_restarts for actor in actors}))
"""
_WITH_RAY = """\
for python in "$(dirname -- "$(command -v ray)")/python" python3 python; do
    "$python" -c 'import ray' 2>/dev/null && exec "$python" -c "$0"
done
exit 1
"""
_MARK = "LIMITS "


class Job(Frozen):
    """A submitted job as the cluster knows it."""

    job_id: str
    status: str
    node_id: str | None  # where its entrypoint runs or ran; None: nowhere yet
    message: str

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun."""
        return self.status == "PENDING"

    @property
    def has_ended(self) -> bool:
        """Whether it will not run any more."""
        return self.status in _ENDED


def submit(
    cluster: RayCluster, entrypoint: str, *, job_id: str, host: str | None, env: Mapping[str, str]
) -> None:
    """Submit a job, of which one with this id must not be there: see `discard`.

    Args:
        cluster: where to.
        entrypoint: a command line for the node's shell.
        job_id: its id, chosen by us so that it is found again after a crash.
        host: the node it is pinned to, by the resource of that name; None: the head.
        env: its environment; shown by the dashboard, so nothing secret.

    Raises:
        RayClusterError: the head does not answer, or refuses.
    """
    body: dict[str, object] = {
        "entrypoint": entrypoint,
        "submission_id": job_id,
        "runtime_env": {"env_vars": dict(env)},
    }
    if host is not None:
        body["entrypoint_resources"] = {host: _SHARE}
    ask(cluster, "POST", "api/jobs/", json=body)


def job(cluster: RayCluster, job_id: str) -> Job | None:
    """Return what the cluster knows of a job; None: nothing.

    Raises:
        RayClusterError: no usable answer.
    """
    try:
        answer = ask(cluster, "GET", f"api/jobs/{job_id}")
        known = answer.json()
        return Job(
            job_id=job_id,
            status=known["status"],
            node_id=known.get("driver_node_id"),
            message=known.get("message") or "",
        )
    except RayClusterError as error:
        if error.status == httpx.codes.NOT_FOUND:
            return None
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RayClusterError(f"The Ray head says of job {job_id} what is no job: {error!r}") from error


def known(cluster: RayCluster) -> tuple[str, ...]:
    """Return the ids of all jobs that were submitted by the API and that the cluster remembers.

    Raises:
        RayClusterError: no usable answer.
    """
    answer = ask(cluster, "GET", "api/jobs/")
    try:
        return tuple(str(each["submission_id"]) for each in answer.json() if each["submission_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RayClusterError(f"The Ray head does not list its jobs: {error!r}") from error


def wait_for(
    cluster: RayCluster, job_id: str, *, timeout_s: float, still_wanted: Callable[[], None] = lambda: None
) -> Job:
    """Return the job once it has ended, or as it is after `timeout_s`.

    Args:
        cluster: where it runs.
        job_id: its id.
        timeout_s: how long to wait, at most. A head that does not answer meanwhile is asked again.
        still_wanted: called between tries; raises when the deployment must not go on.

    Raises:
        RayClusterError: the cluster does not know it, or its head did not answer at the end.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        is_late = time.monotonic() > deadline
        try:
            found = job(cluster, job_id)
        except RayClusterError:
            if is_late:
                raise
        else:
            if found is None:
                raise RayClusterError(f"The Ray head does not know job {job_id} any more: was it restarted?")
            if found.has_ended or is_late:
                return found
        still_wanted()
        time.sleep(_POLL_S)


def logs(cluster: RayCluster, job_id: str) -> str:
    """Return the end of what a job wrote; empty where the head cannot get it from the job's node."""
    try:
        return str(ask(cluster, "GET", f"api/jobs/{job_id}/logs").json()["logs"]).strip()[-_TAIL_CHARACTERS:]
    except (RayClusterError, ValueError, KeyError, TypeError):
        return ""


def discard(cluster: RayCluster, job_id: str) -> None:
    """Stop a job, and have the cluster forget it once it has ended; unknown already is fine.

    For a moment Ray may list one again that it has just forgotten, as ended.
    One that waits, because it is pinned to a node which takes no work or is not there, can neither be ended
    nor forgotten: it is told to end as soon as it begins, and the head gives it up after a quarter of
    an hour. Untold it would run once another node of that name is there.

    Raises:
        RayClusterError: the head does not answer, or a running job does not end.
    """
    found = job(cluster, job_id)
    if found is None:
        return
    if not found.has_ended:
        ask(cluster, "POST", f"api/jobs/{job_id}/stop")
        found = wait_for(cluster, job_id, timeout_s=_STOP_TIMEOUT_S)
        if found.is_waiting:
            return
    try:
        ask(cluster, "DELETE", f"api/jobs/{job_id}")
    except RayClusterError as error:
        if error.status != httpx.codes.NOT_FOUND:
            raise


def restart_limits(cluster: RayCluster) -> dict[str, int]:
    """Return how often each actor may be restarted, by its id; -1: without end. Empty: it cannot be told.

    Asked by a short job on the head's node, as the API itself does not tell.
    """
    entrypoint, job_id = (
        shlex.join(("sh", "-c", _WITH_RAY, _LIMITS)),
        f"restart-limits.{secrets.token_hex(6)}",
    )
    try:
        submit(cluster, entrypoint, job_id=job_id, host=None, env={})
        wait_for(cluster, job_id, timeout_s=cluster.canary_timeout_s)
        return _limits(str(ask(cluster, "GET", f"api/jobs/{job_id}/logs").json()["logs"]))
    except (RayClusterError, ValueError, KeyError, TypeError):
        return {}
    finally:
        with suppress(RayClusterError):
            discard(cluster, job_id)


def _limits(written: str) -> dict[str, int]:
    lines = [line.removeprefix(_MARK) for line in written.splitlines() if line.startswith(_MARK)]
    return {str(actor): int(limit) for actor, limit in json.loads(lines[-1]).items()} if lines else {}
