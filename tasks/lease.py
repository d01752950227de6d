"""The lock on a target, across hosts: a lease kept as a Prefect variable.

A variable's name is unique, so creating it takes the lock atomically. Its id is the fencing token:
renewing and removing go by id, so a holder that was replaced gets 404 and knows it. Age is measured by
the server's clock alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from rules.errors import ApiUnavailableError, FencedError, LockHeldError
from rules.frozen import Frozen
from tasks.control import Control, asked
from tasks.prefect_api import PrefectApi, server_time

log = logging.getLogger(__name__)
_GONE = frozenset({404})
_TAKEN = frozenset({409, 422})
_ENDED = frozenset({"CANCELLING", "CANCELLED", "CRASHED", "FAILED"})


class Owner(Frozen):
    """Who holds a target, since when."""

    deployment: str
    flow_run_id: str
    host: str
    pid: int
    since: datetime
    lease_s: float
    holds: tuple[str, ...] = ()  # a release: the targets that nobody else may deploy to meanwhile


class Holding(Frozen):
    """A lock as the server knows it."""

    token: str
    owner: Owner
    age_s: float

    @property
    def has_ended(self) -> bool:
        """Whether its lease is over, so that another host may take it."""
        return self.age_s > self.owner.lease_s


def lock_name(target: str) -> str:
    """Return the name of the variable that locks `target`."""
    return f"sovereign_lock_{target.replace('-', '_')}"


def current_holding(api: PrefectApi, target: str) -> Holding | None:
    """Return who holds `target` now; None when it is free."""
    response = api.request("GET", f"variables/name/{lock_name(target)}", accept=_GONE)
    if response.status_code in _GONE:
        return None
    return _holding(response.json(), server_time(response))


def all_holdings(api: PrefectApi) -> tuple[Holding, ...]:
    """Return every lock that is held on any target."""
    wanted = {"variables": {"name": {"like_": "sovereign_lock_%"}}, "limit": 200}
    response = api.request("POST", "variables/filter", wanted)
    now = server_time(response)
    return tuple(_holding(row, now) for row in response.json() if row["name"].startswith("sovereign_lock_"))


def _holding(row: dict[str, Any], now: datetime) -> Holding:
    renewed = datetime.fromisoformat(row["updated"])
    age_s = max(0.0, (now - renewed).total_seconds())
    return Holding(token=row["id"], owner=Owner.model_validate(row["value"]), age_s=age_s)


def acquire(api: PrefectApi, target: str, owner: Owner) -> Lease:
    """Take the lock on `target`.

    Raises:
        LockHeldError: another deployment has it; names it.
        ApiUnavailableError: the API does not answer.
    """
    asked = time.monotonic()
    row = {"name": lock_name(target), "value": owner.model_dump(mode="json"), "tags": ["sovereign-lock"]}
    response = api.request("POST", "variables/", row, accept=_TAKEN)
    if response.status_code not in _TAKEN:
        return Lease(token=response.json()["id"], owner=owner, renewed_at=asked)
    holding = current_holding(api, target)
    if holding and holding.owner.deployment == owner.deployment and holding.owner.pid == owner.pid:
        # our own request, whose answer was lost and which was repeated
        return Lease(token=holding.token, owner=owner, renewed_at=asked)
    who = holding.owner if holding else None
    raise LockHeldError(
        f"{target} is being deployed by {who.deployment if who else 'another deployment'}"
        + (
            f" (flow run {who.flow_run_id} on {who.host} since {who.since:%Y-%m-%d %H:%M:%S} UTC)"
            if who
            else ""
        )
        + ". Nothing was changed. Wait for it, or roll it back; if its rollback failed, run roll-back for it "
        "once the cause is mended."
    )


def take_over(api: PrefectApi, target: str, held: Holding, owner: Owner) -> Lease:
    """Replace a dead holder: exactly one taker succeeds, and the old token is worth nothing from then on.

    Raises:
        FencedError: another process was faster.
    """
    response = api.request("DELETE", f"variables/{held.token}", accept=_GONE)
    if response.status_code in _GONE:
        raise FencedError(f"{target} was taken over from {held.owner.deployment} by another process just now")
    try:
        return acquire(api, target, owner)
    except LockHeldError as error:
        raise FencedError(f"{target} was taken over by another process just now: {error}") from error


class Lease:
    """A lock that this process holds. Safe to use from several threads."""

    def __init__(self, *, token: str, owner: Owner, renewed_at: float) -> None:
        self.token = token
        self.owner = owner
        self._renewed_at = renewed_at
        self._fenced = False

    @property
    def left_s(self) -> float:
        """Seconds the lease still runs by this process's own clock, counted from before its last renewal."""
        return self.owner.lease_s - (time.monotonic() - self._renewed_at)

    @property
    def silent_s(self) -> float:
        """Seconds since the API last confirmed the lease."""
        return time.monotonic() - self._renewed_at

    @property
    def is_fenced(self) -> bool:
        """Whether the server said that the lease is another's now."""
        return self._fenced

    def renew(self, api: PrefectApi) -> None:
        """Prove and prolong the lease.

        Raises:
            FencedError: it was taken over.
            ApiUnavailableError: the API does not answer; the lease runs on for `left_s`.
        """
        asked = time.monotonic()
        row = {"value": self.owner.model_dump(mode="json")}
        response = api.request("PATCH", f"variables/{self.token}", row, accept=_GONE)
        if response.status_code in _GONE:
            self._fenced = True
            raise FencedError(
                f"the lock of {self.owner.deployment} was taken over by another process; this one stops "
                "and changes nothing more"
            )
        self._renewed_at = asked

    def release(self, api: PrefectApi) -> None:
        """Give the lock back; it may be gone already."""
        api.request("DELETE", f"variables/{self.token}", accept=_GONE)


class LeaseKeeper:
    """Renews a lease in the background, and hears what is asked of its deployment from outside.

    That is the flow run's state, which a cancellation changes, and a person's word: pause, resume, abort.
    """

    def __init__(
        self,
        api: PrefectApi,
        lease: Lease,
        *,
        every_s: float,
        on_renewal: Callable[[float], object] = lambda _until: None,
    ) -> None:
        self._on_renewal = on_renewal
        self._api, self._lease, self._every_s = api, lease, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
        self.run_state: str | None = None
        self.control: Control | None = None

    def start(self) -> None:
        """Begin to renew."""
        self._on_renewal(time.time() + self._lease.left_s)
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; returns when no request is under way any more, or after 10 s."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    @property
    def was_revoked(self) -> bool:
        """Whether the flow run is being cancelled, or has ended, by the API's word."""
        return self.run_state in _ENDED

    def _keep(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._lease.renew(self._api)
                self._on_renewal(time.time() + self._lease.left_s)
                self._read_run_state()
                self.control = asked(self._api, self._lease.owner.deployment)
            except FencedError as error:
                log.warning("%s", error)
                return
            except ApiUnavailableError as error:
                log.warning("lease not renewed, %.0f s left: %s", self._lease.left_s, error)

    def _read_run_state(self) -> None:
        response = self._api.request("GET", f"flow_runs/{self._lease.owner.flow_run_id}", accept=_GONE)
        if response.status_code not in _GONE:
            self.run_state = response.json()["state_type"]
