"""The checklist before a deployment, on a real fleet, real archives and real services around it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.grafana import Grafana
from blocks.notifications import Notifications
from lab.application import LabApplication
from lab.grafana import LabGrafana
from lab.prometheus import ALERT_RULES, LabPrometheus
from lab.webhook import LabWebhook
from rules.change import ApplicationRelease, ReleaseArchive
from rules.checklist import Attestation, ChecklistReport, Waiver
from rules.entries import Monitored, Moved, Planned
from rules.environment import Environment, GateLimits, Stage
from rules.errors import InvalidRequestError
from rules.finding import Finding, Result
from rules.plan import Plan
from rules.request import Papers
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen, InPlace
from tasks import haproxy
from tasks.checklist import items_of, refuse_unknown_rows, run_checklist
from tasks.fleet import observe_fleet
from tasks.journal import JournalFile
from tasks.services import Services
from tasks.settings import Settings
from tests.requirements import need
from tests.tasks.deploying import opening, settings_in
from tests.tasks.updating import NEXT_RELEASE

DEVELOPMENT = Environment()
PRODUCTION = Environment(name="production", stage=Stage.PRODUCTION)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LabApplication]:
    """One blue and one green instance behind HAProxy."""
    with LabApplication(tmp_path / "web", blue=1, green=1) as running:
        yield running


@pytest.fixture
def quick(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, baseline_s=0.2)


def planned(pair: LabApplication, change: ApplicationRelease | None = None) -> Plan:
    fleet = pair.fleet
    return plan_rollout(change or pair.change(NEXT_RELEASE), BlueGreen(), fleet, observe_fleet(fleet))


def gate(
    pair: LabApplication,
    plan: Plan,
    settings: Settings,
    *,
    environment: Environment = DEVELOPMENT,
    services: Services | None = None,
    papers: Papers | None = None,
) -> ChecklistReport:
    return run_checklist(
        plan,
        opening(pair.fleet, environment=environment),
        services or Services(),
        papers=papers or Papers(),
        api=None,
        settings=settings,
    )


def row(report: ChecklistReport, name: str) -> Finding:
    (check,) = [check for check in report.checks if check.id == name]
    return Finding(result=check.result, evidence=check.evidence)


def test_is_open_in_development_when_all_is_well_and_says_what_it_saw(pair, quick):
    plan = planned(pair)
    report = gate(pair, plan, quick)
    assert report.blocking == ()
    assert [check.id for check in report.checks] == [item.id for item in items_of(plan)]
    assert all(check.evidence for check in report.checks)


def test_is_closed_in_production_without_evidence_and_says_how_to_supply_it(pair, quick):
    report = gate(pair, planned(pair), quick, environment=PRODUCTION)
    blocking = {check.id for check in report.blocking}
    assert {"code-reviewed", "tests-passing", "backup-plan", "staging-record", "ci-ready"} <= blocking
    assert all(check.remedy for check in report.blocking)
    assert "Give `evidence.tests`: JUnit XML" in report.in_words


def test_is_closed_to_an_archive_that_is_not_what_was_asked_for(pair, quick):
    plan = planned(pair)
    path = Path(plan.change.artefact.path)
    path.write_bytes(path.read_bytes()[:-1])
    report = gate(pair, plan, quick)
    assert [check.id for check in report.blocking] == ["release-present"]
    assert plan.change.artefact.sha256 in report.in_words


@pytest.mark.parametrize("there", ["nothing", "a directory"])
def test_is_closed_to_an_archive_that_is_missing(pair, quick, there):
    plan = planned(pair)
    path = Path(plan.change.artefact.path)
    path.unlink()
    if there == "a directory":
        path.mkdir()
    report = gate(pair, plan, quick)
    assert [check.id for check in report.blocking] == ["release-present"]
    assert "Put the archive there" in report.in_words


def test_is_closed_when_an_instance_that_serves_users_is_dead(pair, quick):
    pair.kill("blue-1")
    report = gate(pair, planned(pair), quick)
    assert {"instances-healthy", "rollback-plan"} <= {check.id for check in report.blocking}
    assert "0 of 1 answer their probe; down: blue-1" in report.in_words


def test_is_closed_when_an_instance_that_serves_users_is_taken_out(pair, quick):
    haproxy.drain(pair.haproxy.address, "blue", "blue-1", deadline_s=5)
    report = gate(pair, planned(pair), quick)
    assert "balancer-ready" in [check.id for check in report.blocking]
    assert "taken out: blue-1" in report.in_words


def test_a_dead_instance_of_the_idle_side_does_not_close_it(pair, quick):
    pair.kill("green-1")
    assert gate(pair, planned(pair), quick).blocking == ()


def test_this_machine_has_headroom_and_needs_no_network_to_itself(pair, quick):
    patient = GateLimits(max_cpu_ratio=1.0, min_memory_free_ratio=0, min_disk_free_ratio=0)
    report = gate(pair, planned(pair), quick, environment=Environment(limits=patient))
    assert row(report, "headroom").result is Result.PASSED
    assert row(report, "network-bandwidth").result is Result.NOT_APPLICABLE
    greedy = GateLimits(min_memory_free_ratio=1.0)
    report = gate(pair, planned(pair), quick, environment=Environment(limits=greedy))
    assert row(report, "headroom").result is Result.FAILED


def test_alert_rules_and_dashboards_must_be_there(pair, quick, tmp_path):
    need("prometheus", package="prometheus")
    limits = GateLimits(required_dashboards=("sovereign-deploy",))
    environment = Environment(limits=limits)
    plan = planned(pair)
    with LabPrometheus(tmp_path / "prometheus", {}, rules=ALERT_RULES) as prometheus, LabGrafana() as grafana:
        services = Services(
            prometheus=prometheus.block, grafana=Grafana(url=grafana.url, token=grafana.token)
        )
        found = row(gate(pair, plan, quick, environment=environment, services=services), "dashboards-ready")
        assert found.result is Result.FAILED
        assert "dashboard sovereign-deploy" in found.evidence
        grafana.dashboards["sovereign-deploy"] = {"uid": "sovereign-deploy", "title": "Deployments"}
        found = row(gate(pair, plan, quick, environment=environment, services=services), "dashboards-ready")
        assert found.result is Result.PASSED, found
        prometheus.kill()
        found = row(gate(pair, plan, quick, environment=environment, services=services), "dashboards-ready")
        assert found.result is Result.UNKNOWN


def test_the_team_is_notified_when_a_service_took_the_message(pair, quick):
    plan = planned(pair)
    with LabWebhook() as webhook, LabWebhook(status=403) as refusing:
        told = Services(notifications=Notifications(urls=[webhook.apprise_url()]))
        not_told = Services(notifications=Notifications(urls=[refusing.apprise_url()]))
        assert row(gate(pair, plan, quick, services=told), "team-notified").result is Result.PASSED
        assert row(gate(pair, plan, quick, services=not_told), "team-notified").result is Result.FAILED
    assert NEXT_RELEASE in str(webhook.received[0])
    assert row(gate(pair, plan, quick), "team-notified").result is Result.UNKNOWN


def test_a_dry_run_tells_nobody(pair, quick):
    plan = planned(pair)
    with LabWebhook() as webhook:
        services = Services(notifications=Notifications(urls=[webhook.apprise_url()]))
        run_checklist(
            plan,
            opening(pair.fleet, environment=DEVELOPMENT),
            services,
            papers=Papers(),
            api=None,
            settings=quick,
            tell=False,
        )
    assert webhook.requests == 0


def staged(
    pair: LabApplication, plan: Plan, settings: Settings, *, stage: Stage, state: str, watched: bool = True
) -> None:
    """Leave the journal of an earlier deployment of the plan's content on the disk."""
    opened = opening(pair.fleet, environment=Environment(name=str(stage), stage=stage))
    journal = JournalFile(settings.journal_dir, opened.deployment)
    with journal.begun(opened):
        journal.append(Planned(plan=plan))
        journal.append(Moved(state="promoted", reason="all well", by="flow", at=opened.at))
        if watched:
            seen = Monitored(at=opened.at, number=0, since=opened.at, action="fine", reasons=("all well",))
            journal.append(seen)
        journal.append(Moved(state=state, reason="all well", by="flow", at=opened.at))


def test_production_wants_a_completed_staging_record_of_the_same_content(pair, quick):
    plan = planned(pair)

    def found() -> Finding:
        return row(gate(pair, plan, quick, environment=PRODUCTION), "staging-record")

    assert found().result is Result.FAILED
    staged(pair, plan, quick, stage=Stage.DEVELOPMENT, state="completed")
    staged(pair, plan, quick, stage=Stage.STAGING, state="rolled_back")
    path = Path(plan.change.artefact.path).with_name("other.tar.gz")
    path.write_bytes(gzip.compress(b"other"))
    other = plan.change.model_copy(update={"artefact": ReleaseArchive(path=str(path), sha256="0" * 64)})
    staged(pair, plan.model_copy(update={"change": other}), quick, stage=Stage.STAGING, state="completed")
    staged(pair, plan, quick, stage=Stage.STAGING, state="completed", watched=False)
    assert found().result is Result.FAILED
    staged(pair, plan, quick, stage=Stage.STAGING, state="completed")
    assert found().result is Result.PASSED
    below = row(gate(pair, plan, quick), "staging-record")
    assert below.result is Result.NOT_APPLICABLE


def test_words_of_persons_open_rows_and_are_in_the_report(pair, quick):
    papers = Papers(
        attestations=(Attestation(item="migrations-prepared", by="Ada", words="There are none."),),
        waivers=(Waiver(item="tests-passing", by="Ada", reason="A hotfix of one line."),),
    )
    staging = Environment(name="staging", stage=Stage.STAGING)
    report = gate(pair, planned(pair), quick, environment=staging, papers=papers)
    assert row(report, "migrations-prepared") == Finding(result=Result.ATTESTED, evidence="There are none.")
    assert row(report, "tests-passing").result is Result.WAIVED
    assert {"Ada"} == {check.by for check in report.checks if check.by}
    assert not {"migrations-prepared", "tests-passing"} & {check.id for check in report.blocking}


def test_a_word_about_a_row_that_does_not_exist_is_refused(pair):
    papers = Papers(waivers=(Waiver(item="test-passing", by="Ada", reason="a slip"),))
    with pytest.raises(InvalidRequestError, match="No row of the checklist is called test-passing"):
        refuse_unknown_rows(planned(pair), papers)


def test_in_place_has_no_rows_of_a_strategy(pair):
    fleet = pair.fleet
    plan = plan_rollout(pair.change(NEXT_RELEASE), InPlace(instance="blue-1"), fleet, observe_fleet(fleet))
    assert "strategy" not in {item.section for item in items_of(plan)}
    assert [item.section for item in items_of(planned(pair))].count("strategy") == 8
