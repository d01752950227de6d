"""The Temporal worker: `python -m triggers.temporal` serves `deploy_workflow` on the task queue `sovereign`.

Needs `sovereign-deploy[temporal]`, and Prefect's API as PREFECT_API_URL and PREFECT_API_AUTH_STRING name it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfigProfile
from temporalio.worker import Worker

from rules.errors import ApiUnavailableError
from triggers.api import DeployApi
from triggers.temporal_activities import Activities
from triggers.temporal_workflow import TASK_QUEUE, WORKFLOW, DeployWorkflow

log = logging.getLogger(__name__)
_ADDRESS, _NAMESPACE = "127.0.0.1:7233", "default"
_CANNOT_SERVE = 8
#: Heartbeats bring back that an activity was cancelled; the SDK would hold them back for 24 s.
_HEARTBEAT_EVERY = timedelta(seconds=5)


def worker_of(client: Client, activities: Activities) -> Worker:
    """Return the worker of our workflow and activities, not started."""
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[DeployWorkflow],
        activities=[
            activities.read_request,
            activities.start_deployment,
            activities.watch_deployment,
            activities.cancel_deployment,
            activities.answer_approval,
        ],
        max_heartbeat_throttle_interval=_HEARTBEAT_EVERY,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code: 0, or 8 when it cannot serve."""
    asked = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of each look
    try:
        DeployApi().close()  # says so if PREFECT_API_URL is missing
        known = ClientConfigProfile.load()
        profile = dataclasses.replace(
            known,
            address=asked.address or known.address or _ADDRESS,
            namespace=asked.namespace or known.namespace or _NAMESPACE,
        )
        return asyncio.run(_serve(profile, asked.requests))
    # the SDK raises RuntimeError for wrong settings, no server and no namespace alike, OSError for key files
    except (ApiUnavailableError, OSError, RuntimeError) as error:
        log.critical("The worker does not serve: %s. Deployments that run are not touched.", error)
        return _CANNOT_SERVE


async def _serve(profile: ClientConfigProfile, requests: Path | None) -> int:
    ends = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ends.set)
    client = await Client.connect(
        **profile.to_client_connect_config(), data_converter=pydantic_data_converter
    )
    async with worker_of(client, Activities(requests)):
        log.info(
            "serving %s on task queue %s of %s at %s; requests from %s",
            WORKFLOW,
            TASK_QUEUE,
            profile.namespace,
            profile.address,
            requests or "inputs only",
        )
        await ends.wait()
        log.info("told to end: what is watched goes on, and the next worker watches it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m triggers.temporal",
        description=f"Serve {WORKFLOW} on task queue {TASK_QUEUE}. TLS and API key come from Temporal's own "
        "variables (TEMPORAL_TLS, TEMPORAL_TLS_CLIENT_CERT_PATH, TEMPORAL_API_KEY, ...) or its "
        "configuration file; so do address and namespace where they are not given.",
    )
    parser.add_argument("--address", help=f"host:port of Temporal's frontend; else {_ADDRESS}")
    parser.add_argument("--namespace", help=f"else {_NAMESPACE}")
    parser.add_argument(
        "--requests",
        type=_directory,
        help="directory of requests: production.yaml is what the input {'deployment': 'production'} means",
    )
    return parser


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory")
    return path


if __name__ == "__main__":
    sys.exit(main())
