"""What follows the end of a deployment: people hear of it, books are kept, nothing is in the way."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from blocks.notifications import Notifications
from lab.ports import LOCALHOST, free_port, give_back
from lab.prefect_server import PrefectServer
from lab.webhook import LabWebhook
from rules.entries import Intent, Moved
from rules.environment import Environment
from rules.message import Event
from tasks.aftermath import after_end, services_of, tell
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.services import Services
from tasks.settings import Settings
from tests.tasks.deploying import STEP, opening, settings_in
from tests.tasks.gateway import Fault, Gateway, api_through


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    books = {"records_dir": tmp_path / "records", "metrics_file": tmp_path / "sovereign.prom"}
    return settings_in(tmp_path, api_patience_s=10, **books)


def ended(settings: Settings, state: str, reason: str, **changes):
    """Return a deployment's journal, as it lies on the disk."""
    opened = opening(**changes)
    journal = JournalFile(settings.journal_dir, opened.deployment)
    moves = ("promoted",) if state == "promoted" else ("rolling_back", state)
    with journal.begun(opened):
        journal.append(Intent(number=0, title=STEP.title, undo=STEP.undo))
        for name in moves:
            journal.append(Moved(state=name, reason=reason, by="flow"))
    return journal.read()


def shown(api: PrefectApi, key: str) -> str:
    return str(api.request("GET", f"artifacts/{key}/latest").json()["data"])


def test_a_failed_rollback_wakes_a_person_and_says_what_to_do(api, settings, caplog):
    failed = ended(settings, "rollback_failed", "host gone.")
    with caplog.at_level(logging.WARNING):
        after_end(failed, api=api, settings=settings)
    urgent = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(urgent) == 1
    assert urgent[0].getMessage().startswith("P0")
    name = failed.opened.deployment
    assert f"run roll-back for {name}" in shown(api, f"incident-{name}")
    assert "stays locked" in shown(api, f"incident-{name}")


def test_a_verified_rollback_is_an_incident_that_wakes_nobody(api, settings, caplog):
    back = ended(settings, "rolled_back", "15 % errors.")
    with caplog.at_level(logging.WARNING):
        after_end(back, api=api, settings=settings)
    assert not [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "P2" in shown(api, f"incident-{back.opened.deployment}")


def test_what_went_well_is_no_incident(api, settings):
    good = ended(settings, "promoted", "all well")
    after_end(good, api=api, settings=settings)
    name = good.opened.deployment
    assert "**promoted**" in shown(api, f"record-{name}")
    assert api.request("GET", f"artifacts/incident-{name}/latest", accept=frozenset({404})).status_code == 404


def test_record_and_metrics_are_kept_on_this_host(api, settings):
    back = ended(settings, "rolled_back", "15 % errors.")
    after_end(back, api=api, settings=settings)
    assert "15 % errors." in (settings.records_dir / f"{back.opened.deployment}.md").read_text()
    assert "sovereign_rollbacks_total{" in settings.metrics_file.read_text()


def test_people_are_told_what_happened_and_where_it_is_left(settings):
    with LabWebhook() as webhook:
        services = Services(notifications=Notifications(urls=[webhook.apprise_url()], timeout_s=5))
        tell(ended(settings, "rolled_back", "15 % errors."), services, Event.ROLLED_BACK)
        (message,) = webhook.received
    assert "15 % errors" in json.dumps(message)


def test_a_dead_notification_service_costs_little_and_stops_nothing(api, settings):
    port = free_port()
    try:
        dead = Services(notifications=Notifications(urls=[f"json://{LOCALHOST}:{port}/"], timeout_s=2))
        began = time.monotonic()
        back = ended(settings, "rolled_back", "15 % errors.")
        after_end(back, api=api, settings=settings, services=dead)
        assert time.monotonic() - began < 10
        assert shown(api, f"record-{back.opened.deployment}")
    finally:
        give_back(port)


def test_with_the_api_away_nobody_is_told_and_nothing_waits_long(
    prefect_api: PrefectServer, settings: Settings
) -> None:
    between: Gateway
    view_of = ended(settings, "rolled_back", "x", environment=Environment(notifications="team"))
    with api_through(prefect_api.api_url, settings) as (api, between):
        between.faults = [Fault("", status=503)]
        began = time.monotonic()
        assert services_of(view_of, api) == Services()
        after_end(view_of, api=api, settings=settings)
        assert time.monotonic() - began < 8
        between.faults = []
    assert (settings.records_dir / f"{view_of.opened.deployment}.md").exists()
