"""Our metrics on their way: journals on disk, a file, a real node-exporter, and promtool's judgement."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lab.ports import free_port, give_back
from lab.processes import start, wait_until
from rules.entries import Moved
from tasks.exposition import expose, write_exposition
from tasks.journal import JournalFile
from tasks.settings import Settings
from tests.requirements import need
from tests.tasks.deploying import opening, settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, metrics_file=tmp_path / "textfiles" / "sovereign.prom")


@pytest.fixture
def journals(settings: Settings) -> None:
    """Three deployments of this host: a good one, one taken back, one that runs."""
    settings.metrics_file.parent.mkdir()
    for name, states in {"good": ["promoted"], "bad": ["rolling_back", "rolled_back"], "open": []}.items():
        opened = opening(deployment=name, target="application-web")
        journal = JournalFile(settings.journal_dir, name)
        with journal.begun(opened):
            for state in states:
                journal.append(Moved(at=opened.at, state=state, reason="test", by="flow"))


@pytest.fixture
def exporter_url(tmp_path: Path, settings: Settings) -> Iterator[str]:
    """A real node-exporter that serves the directory of the metrics file."""
    need("prometheus-node-exporter", package="prometheus-node-exporter")
    port = free_port()
    process = start(
        "node-exporter",
        [
            *("prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{port}"),
            *("--collector.disable-defaults", "--collector.textfile"),
            f"--collector.textfile.directory={settings.metrics_file.parent}",
        ],
        log=tmp_path / "exporter.log",
        env=os.environ,
    )
    url = f"http://127.0.0.1:{port}/metrics"
    with httpx.Client(trust_env=False) as http:

        def answers() -> bool:
            try:
                return http.get(url).is_success
            except httpx.HTTPError:
                return False

        try:
            wait_until(answers, timeout_s=20, what="node-exporter", process=process)
            yield url
        finally:
            process.stop()
            give_back(port)


@pytest.mark.usefixtures("journals")
def test_node_exporter_serves_what_the_journals_say(settings, exporter_url):
    assert expose(settings)
    with httpx.Client(trust_env=False) as http:
        served = http.get(exporter_url).text
    for outcome in ("promoted", "rolled_back"):
        labels = f'component="application",environment="development",outcome="{outcome}",strategy="none"'
        assert f'sovereign_deployments_total{{{labels},target="application-web"}} 1' in served
    assert 'sovereign_rollbacks_total{by="flow",component="application",target="application-web"} 1' in served
    assert 'sovereign_deployment_state{deployment="open",state="running"} 1' in served
    assert 'sovereign_rollback_duration_seconds_count{component="application"} 1' in served
    labels = 'component="application",outcome="promoted",le="1"'
    assert f"sovereign_deployment_duration_seconds_bucket{{{labels}}} 1" in served
    assert "node_textfile_scrape_error 0" in served
    assert "sovereign_last_deployment_timestamp_seconds{" in served


@pytest.mark.usefixtures("journals")
def test_promtool_finds_nothing_to_say_about_them(settings):
    need("promtool", package="prometheus")
    expose(settings)
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        check=False,
        input=settings.metrics_file.read_bytes(),
        capture_output=True,
        timeout=60,
    )
    assert (checked.returncode, checked.stderr.decode()) == (0, "")


@pytest.mark.usefixtures("journals")
def test_another_user_may_read_it_and_nothing_else_is_left(settings):
    old = os.umask(0o077)
    try:
        assert expose(settings)
        assert expose(settings)
    finally:
        os.umask(old)
    assert settings.metrics_file.stat().st_mode & 0o777 == 0o644
    assert list(settings.metrics_file.parent.iterdir()) == [settings.metrics_file]


@pytest.mark.usefixtures("journals")
def test_a_damaged_journal_is_no_trouble_to_the_others(settings):
    (settings.journal_dir / "good" / "journal.jsonl").write_text("no journal\n")
    assert expose(settings)
    counts = dict(
        re.findall(r'deployments_total{.*outcome="(\w+)".* (\S+)', settings.metrics_file.read_text())
    )
    assert (counts["rolled_back"], counts["promoted"]) == ("1.0", "0.0")


@pytest.mark.usefixtures("journals")
def test_a_file_that_cannot_be_written_stops_nothing(settings, caplog):
    settings.metrics_file.mkdir()  # in the way, also for root
    assert not expose(settings)
    assert "The deployment goes on" in caplog.text
    assert [path.name for path in settings.metrics_file.parent.iterdir()] == ["sovereign.prom"]


def test_without_a_file_nothing_is_written(tmp_path):
    assert not expose(settings_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_without_journals_the_file_names_the_metrics_all_the_same(tmp_path):
    write_exposition(tmp_path / "sovereign.prom", ())
    text = (tmp_path / "sovereign.prom").read_text()
    assert len(re.findall(r"^# TYPE sovereign_", text, re.MULTILINE)) == 6
    assert re.findall(r"^sovereign_", text, re.MULTILINE) == []
