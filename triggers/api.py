"""Start, watch, approve, control and take back deployments through Prefect's API: what all ways in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from rules.change import Change
from rules.checklist import Attestation, Waiver
from rules.entries import DeploymentState
from rules.errors import ApiUnavailableError
from rules.evidence.sources import Evidence
from rules.history import matching
from rules.record import DeploymentRecord
from rules.strategy import Strategy
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from triggers.api_errors import BadRequestError, NotAllowedError, UnknownError
from triggers.api_link import Link
from triggers.api_mirror import Journals, OtherVersionError
from triggers.api_progress import Ended, Exit, Progress, Started, ended_as
from triggers.api_request import DeployRequest, deploy_request
from triggers.api_runs import Runs
from triggers.api_watch import Patience, watched

__all__ = [
    "ApiUnavailableError",
    "BadRequestError",
    "DeployApi",
    "DeployRequest",
    "Ended",
    "Exit",
    "NotAllowedError",
    "OtherVersionError",
    "Progress",
    "Started",
    "UnknownError",
    "deploy_request",
]


class DeployApi:
    """A connection to Prefect's API, as `PREFECT_API_URL` and `PREFECT_API_AUTH_STRING` name it.

    Requests are repeated while the API is busy or away, for `api_patience_s`; those that start a run carry an
    idempotency key, so that a repetition starts nothing twice. Several threads may use it.

    Args:
        settings: timeouts; None: from the environment.
        away_s: how long `watch` waits for an API that does not answer.
        abandoned_s: how long `watch` waits for somebody to go on with the deployment of a dead run.

    Raises:
        ApiUnavailableError: PREFECT_API_URL is not set.
    """

    def __init__(
        self, settings: Settings | None = None, *, away_s: float = 300.0, abandoned_s: float = 300.0
    ) -> None:
        self._patience = Patience(away_s=away_s, abandoned_s=abandoned_s)
        self._link = Link(PrefectApi(settings or Settings()))
        self._journals = Journals(self._link)
        self._runs = Runs(self._link, self._journals)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._link.api.close()

    def start(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        key: str | None = None,
        run_name: str | None = None,
        tags: Iterable[str] = (),
    ) -> Started:
        """Ask for a run of a Prefect deployment, once for each key.

        Args:
            name: such as `deploy/deploy`, as in prefect.yaml.
            parameters: of the flow, as JSON.
            key: the same key again returns the run of the first time; None: a new one.
            run_name: what the run is called; None: as the flow calls it.
            tags: beside those of the Prefect deployment.

        Raises:
            UnknownError: no such deployment is registered.
            BadRequestError: a parameter is wrong, or the key was used with other parameters.
            NotAllowedError: the API does not let us in.
            ApiUnavailableError: it does not answer; repeat it with the same key, it may have been heard.
        """
        return self._link.create_run(name, parameters, key=key, run_name=run_name, tags=tags)

    def deploy(
        self,
        change: Change | Mapping[str, Any],
        strategy: Strategy | Mapping[str, Any],
        *,
        environment: str = "development",
        evidence: Evidence | Mapping[str, Any] = Evidence(),  # noqa: B008 - frozen
        attestations: Iterable[Attestation | Mapping[str, Any]] = (),
        waivers: Iterable[Waiver | Mapping[str, Any]] = (),
        dry_run: bool = False,
        key: str | None = None,
    ) -> Started:
        """Ask for a deployment. It is checked here first: Prefect often says no more than that it is wrong.

        Args:
            change: what to deploy, as a value or as JSON has it.
            strategy: in place, blue-green, canary or rolling; the same.
            environment: name of the Sovereign Environment block.
            evidence: what a pipeline hands over for the checklist.
            attestations: persons' words for rows whose evidence cannot be read.
            waivers: persons' decisions to go on without a row.
            dry_run: only show the plan and the checklist.
            key: see `start`.

        Raises:
            BadRequestError, UnknownError, NotAllowedError, ApiUnavailableError: see `start`.
        """
        fields = {
            "change": change,
            "strategy": strategy,
            "environment": environment,
            "evidence": evidence,
            "attestations": tuple(attestations),
            "waivers": tuple(waivers),
            "dry_run": dry_run,
        }
        return self.start("deploy/deploy", deploy_request(fields).parameters, key=key)

    def plan(
        self, change: Change | Mapping[str, Any], strategy: Strategy | Mapping[str, Any], **further: Any
    ) -> Started:
        """Ask for a dry run of what `deploy` would do: nothing is changed, `page` then has what it shows."""
        return self.deploy(change, strategy, **{**further, "dry_run": True})

    def look(self, flow_run_id: str) -> Progress:
        """Return how a run is, and its deployment.

        Raises:
            UnknownError: Prefect has no such run.
            OtherVersionError: its journal was written by another version of this library.
            NotAllowedError, ApiUnavailableError: nothing is known.
        """
        return self._runs.look(flow_run_id)

    def watch(
        self,
        flow_run_id: str,
        *,
        every_s: float = 1.0,
        timeout_s: float | None = None,
        is_away: Callable[[float], object] = bool,
    ) -> Iterator[Progress]:
        """Yield how a run is, first now, then whenever something has changed, until it is over.

        A promoted deployment is over when its run is: the hours of monitoring are not waited for. An API that
        is away is waited for; the deployment goes on meanwhile, or takes itself back.

        Args:
            flow_run_id: the run; or a deployment's id, which may be one that continues a failed way back.
            every_s: seconds between two looks.
            timeout_s: seconds after which to give up; None: never.
            is_away: called after each look with how many seconds the API has not answered; 0: it does.

        Raises:
            TimeoutError: it is not over, and goes on; or its run is dead and nobody takes it back.
            ApiUnavailableError: the API was away for longer than `away_s`.
            UnknownError, OtherVersionError, NotAllowedError: see `look`.
        """
        patience = self._patience.model_copy(update={"every_s": every_s, "timeout_s": timeout_s})
        return watched(lambda: self.find(flow_run_id), patience, is_away=is_away)

    def ended(self, flow_run_id: str, *, timeout_s: float | None = None) -> Ended:
        """Watch a run to its end, and return how it ended.

        Raises:
            TimeoutError, ApiUnavailableError, UnknownError, NotAllowedError: see `watch`.
        """
        (last,) = deque(self.watch(flow_run_id, timeout_s=timeout_s), maxlen=1)
        return ended_as(last)

    def find(self, deployment_or_run: str) -> Progress:
        """Return how a deployment is, by its id, by its run's id, or by the beginning of one of the two.

        Raises:
            UnknownError: there is no such thing, or several begin like that; names them.
            OtherVersionError, NotAllowedError, ApiUnavailableError: see `look`.
        """
        return self._runs.find(deployment_or_run)

    def history(
        self,
        *,
        component: str | None = None,
        environment: str | None = None,
        state: DeploymentState | None = None,
        limit: int = 50,
    ) -> tuple[DeploymentRecord, ...]:
        """Return the records of deployments that are as asked, newest first; None asks for nothing.

        They come from Prefect's artifacts alone: what was never mirrored, such as a deployment that found its
        target locked, is not among them.

        Raises:
            NotAllowedError, ApiUnavailableError: they cannot be read.
        """
        known = self._journals.records()
        return matching(known, component=component, environment=environment, state=state)[:limit]

    def page(self, flow_run_id: str, kind: str) -> str:
        """Return the newest page of a kind that a run has shown in Prefect, as Markdown; empty: none.

        Args:
            flow_run_id: the run.
            kind: such as `dry-run`, `plan`, `checklist-page`, `decisions`, `record`, `incident`.
        """
        return self._journals.page(flow_run_id, kind)

    def approve(self, flow_run_id: str, *, approved: bool, by: str, words: str = "") -> None:
        """Answer a run that waits for approval: yes, or no.

        Raises:
            BadRequestError: it does not wait, or the answer is not complete; says which.
            UnknownError: Prefect has no such run.
            NotAllowedError, ApiUnavailableError: it was not answered.
        """
        self._link.resume(flow_run_id, {"approved": approved, "by": by, "words": words})

    def control(
        self,
        deployment: str,
        word: Literal["pause", "resume", "abort"],
        *,
        by: str,
        reason: str,
        key: str | None = None,
    ) -> Started:
        """Ask for a word to a deployment that runs: pause, resume or abort; see `flows/control.py`.

        Raises:
            BadRequestError, UnknownError, NotAllowedError, ApiUnavailableError: see `start`.
        """
        parameters = {"deployment": deployment, "word": word, "by": by, "reason": reason}
        return self.start("control/control", parameters, key=key)

    def roll_back(
        self, deployment: str, *, reason: str, accept_loss: bool = False, key: str | None = None
    ) -> Started:
        """Ask for a deployment to be taken back at once, by a person's word; see `flows/recover.py`.

        Raises:
            BadRequestError, UnknownError, NotAllowedError, ApiUnavailableError: see `start`.
        """
        parameters = {"deployment": deployment, "reason": reason, "accept_loss": accept_loss}
        return self.start("roll-back/roll-back", parameters, key=key)

    def recover(self, *, key: str | None = None) -> Started:
        """Ask for a look at every deployment whose process is gone; it is scheduled each minute anyway.

        Raises:
            UnknownError, NotAllowedError, ApiUnavailableError: see `start`.
        """
        return self.start("recover/recover", {}, key=key)

    def cancel(self, flow_run_id: str) -> None:
        """Cancel a run. A deployment that it is takes itself back; asking twice is asking once.

        Raises:
            BadRequestError: it cannot be cancelled, such as one that is over.
            UnknownError: Prefect has no such run.
            NotAllowedError, ApiUnavailableError: it was not asked to stop.
        """
        self._link.cancel(flow_run_id)
