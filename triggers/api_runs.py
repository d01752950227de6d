"""Runs and their deployments: how one is, and which one is meant."""

from __future__ import annotations

import re
import uuid

from rules.journal import JournalView
from rules.release_actions import TakeBackDeployment
from triggers.api_errors import UnknownError
from triggers.api_link import Link
from triggers.api_mirror import Journals
from triggers.api_progress import Progress

#: Flows that are about the deployment their parameter names.
_ABOUT_ANOTHER = frozenset({"roll-back", "delayed-roll-back"})
#: What people say themselves, beside the deployments: not the runs that come each minute by a schedule.
_SAID = ["roll-back", "delayed-roll-back", "control"]
_CHANGES = "sovereign-change"
_RECENT_RUNS = 200
_SHORTEST = 4
_BEGINNING = re.compile(r"[0-9a-f][0-9a-f-]{2,35}")


class Runs:
    """Flow runs as Prefect has them, each with the deployment that it is, or is about."""

    def __init__(self, link: Link, journals: Journals) -> None:
        self._link, self._journals = link, journals
        self._flows: dict[str, str] = {}

    def look(self, flow_run_id: str) -> Progress:
        """Return how a run is now; see `DeployApi.look`."""
        # the run first: one that is over has mirrored all that it ever will
        run = self._link.ask(
            "GET",
            f"flow_runs/{flow_run_id}",
            what="read the flow run",
            if_unknown=f"Prefect has no flow run {flow_run_id}. `history` lists deployments.",
        )
        flow = self._flow(run["flow_id"])
        about = str(run["parameters"].get("deployment", "")) if flow in _ABOUT_ANOTHER else ""
        journal = self._journals.last_try(about) if about else self._journals.of_run(run["id"])
        state = run["state"] or {"type": "SCHEDULED", "message": ""}
        return Progress(
            flow_run_id=run["id"],  # as Prefect and journals write it, however the caller did
            run_state=state["type"],
            run_message=state["message"] or "",
            flow=flow,
            deployment=journal.opened.deployment if journal else about,
            journal=journal,
            asked_run=self._asked(journal) if journal and state["type"] == "RUNNING" else "",
        )

    def _asked(self, journal: JournalView) -> str:
        """Return the run of a release's component that waits for an answer: the release's own run goes on."""
        begun = journal.intents[-1].undo if journal.intents and journal.state == "running" else None
        if not isinstance(begun, TakeBackDeployment) or not journal.opened.environment.needs_approval:
            return ""
        part = self._journals.of_deployment(begun.deployment)
        if part is None or part.state != "running":
            return ""
        run = part.opened.flow_run_id
        try:
            found = self._link.ask("GET", f"flow_runs/{run}", what="read a component's flow run")
        except UnknownError:  # somebody has deleted it
            return ""
        return run if found["state_type"] == "PAUSED" else ""

    def find(self, deployment_or_run: str) -> Progress:
        """Return how that deployment or run is; see `DeployApi.find`."""
        if _is_uuid(deployment_or_run):
            return self.look(deployment_or_run)
        journal = self._journals.of_deployment(deployment_or_run)
        if journal is not None:
            return self._of_journal(journal)
        found = self._beginning(deployment_or_run) if len(deployment_or_run) >= _SHORTEST else ()
        # a release's components, and who takes a failed way back up again, are called after it
        found = tuple(one for one in found if not any(one.startswith(f"{other}-") for other in found))
        if len(found) != 1:
            several = f"several begin like that: {', '.join(sorted(found)[:10])}"
            raise UnknownError(
                f"No deployment and no recent flow run is called {deployment_or_run!r}"
                f"{f', but {several}' if found else ''}. `history` lists deployments."
            )
        return self.find(found[0])

    def _beginning(self, text: str) -> tuple[str, ...]:
        """Return what begins like this: deployments, and recent runs that are none of them."""
        names, runs = self._journals.names(text), self._recent(text)
        return (*names, *runs)

    def _recent(self, beginning: str) -> list[str]:
        if not _BEGINNING.fullmatch(beginning):
            return []
        newest = {"sort": "START_TIME_DESC", "limit": _RECENT_RUNS}
        wanted = ({"deployments": {"tags": {"all_": [_CHANGES]}}}, {"flows": {"name": {"any_": _SAID}}})
        runs = [
            str(run["id"])
            for which in wanted
            for run in self._link.ask("POST", "flow_runs/filter", {**newest, **which}, what="list flow runs")
        ]
        return [run for run in dict.fromkeys(runs) if run.startswith(beginning)]

    def _of_journal(self, journal: JournalView) -> Progress:
        """Return how a deployment is; Prefect may have forgotten its run, and the journal still tells."""
        run, deployment = journal.opened.flow_run_id, journal.opened.deployment
        try:
            progress = self.look(run)
        except UnknownError:
            progress = Progress(flow_run_id=run, run_state="")
        return progress.model_copy(update={"deployment": deployment, "journal": journal})

    def _flow(self, flow_id: str) -> str:
        """Return a flow's name; it never changes."""
        if flow_id not in self._flows:
            self._flows[flow_id] = self._link.ask("GET", f"flows/{flow_id}", what="read the flow")["name"]
        return self._flows[flow_id]


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
