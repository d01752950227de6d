"""Telling people by real HTTP requests, and what happens when a service is dead, refuses or hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from blocks.notifications import Notifications
from lab.ports import free_port, give_back
from lab.webhook import LabWebhook
from rules.finding import Result
from rules.message import Message
from tasks import notify as notifying
from tasks.notify import Delivery, notified_finding, notify, service_name

MESSAGE = Message(title="Rolled back: web 2.0", body="**State:** as before.\n\n- who: me", severity="warning")
SECRET = "T0PSECRETtoken"  # noqa: S105 - what must not be seen


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """Have the library read its hundred services first: that can take longer than timeouts here."""
    with LabWebhook() as first:
        assert notify(telling(first.apprise_url(), timeout_s=60), MESSAGE).accepted


@pytest.fixture
def hook() -> Iterator[LabWebhook]:
    with LabWebhook() as running:
        yield running


@pytest.fixture
def dead_port() -> Iterator[int]:
    port = free_port()
    yield port
    give_back(port)


def telling(*urls: str, timeout_s: float = 5.0) -> Notifications:
    return Notifications(urls=[SecretStr(url) for url in urls], timeout_s=timeout_s)


def test_a_service_gets_title_words_and_severity(hook):
    delivery = notify(telling(hook.apprise_url()), MESSAGE)
    assert (delivery.accepted, delivery.refused) == (("json://127.0.0.1",), ())
    (received,) = hook.received
    assert received["title"] == MESSAGE.title
    assert received["type"] == "warning"
    assert "State:" in received["message"]
    assert "as before." in received["message"]


@pytest.mark.parametrize("severity", ["info", "success", "warning", "failure"])
def test_each_severity_has_its_own_sign(hook, severity):
    notify(telling(hook.apprise_url()), MESSAGE.model_copy(update={"severity": severity}))
    assert [one["type"] for one in hook.received] == [severity]


def test_nobody_to_tell_is_no_error_but_no_proof_either():
    for nobody in (None, telling()):
        delivery = notify(nobody, MESSAGE)
        assert not delivery.was_tried
        assert notified_finding(delivery).result is Result.UNKNOWN


def test_a_dead_service_is_said_and_not_raised(dead_port):
    delivery = notify(telling(f"json://127.0.0.1:{dead_port}/{SECRET}"), MESSAGE)
    assert delivery.accepted == ()
    assert [one.service for one in delivery.refused] == ["json://127.0.0.1"]
    assert "cannot be reached" in delivery.refused[0].reason
    assert notified_finding(delivery).result is Result.FAILED


def test_a_service_that_refuses_is_said_with_its_status():
    with LabWebhook(status=403) as refusing:
        delivery = notify(telling(refusing.apprise_url()), MESSAGE)
    assert delivery.refused[0].reason == "it answered 403"
    assert refusing.requests == 1


def test_a_service_that_hangs_costs_no_more_than_the_timeout(hook):
    with LabWebhook(hangs=True) as hanging:
        began = time.monotonic()
        delivery = notify(telling(hanging.apprise_url(), hook.apprise_url(), timeout_s=1.5), MESSAGE)
        assert time.monotonic() - began < 2.5
        assert hanging.requests == 1
    assert delivery.accepted == ("json://127.0.0.1",)
    assert (
        "no answer within 1.5 s" in delivery.refused[0].reason
        or "did not answer" in delivery.refused[0].reason
    )


def test_many_that_hang_cost_one_timeout_together():
    with LabWebhook(hangs=True) as hanging:
        urls = [hanging.apprise_url(f"hook-{number}") for number in range(5)]
        began = time.monotonic()
        delivery = notify(telling(*urls, timeout_s=1.0), MESSAGE)
        assert time.monotonic() - began < 2.0
    assert len(delivery.refused) == 5


def test_of_several_the_living_ones_are_told(hook, dead_port):
    dead = f"json://127.0.0.1:{dead_port}/hook"
    delivery = notify(telling(hook.apprise_url("a"), dead, "nonsense", hook.apprise_url("b")), MESSAGE)
    assert len(delivery.accepted) == len(hook.received) == 2
    assert [one.service for one in delivery.refused] == ["json://127.0.0.1", "service 3"]
    finding = notified_finding(delivery)
    assert finding.result is Result.PASSED
    assert "not by service 3: its URL is not one that Apprise understands" in finding.evidence


def test_what_is_left_behind_ends_by_itself(hook):
    with LabWebhook(hangs=True) as hanging:
        notify(telling(hanging.apprise_url(), timeout_s=0.5), MESSAGE)
    deadline = time.monotonic() + 5
    while any(isinstance(one, notifying._Call) for one in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "url",
    [
        "json://user:{secret}@127.0.0.1:{port}/{secret}?:key={secret}&+X-Token={secret}",
        "json://127.0.0.1:{port}/{secret}",
        "slack://{secret}",
        "{secret}://127.0.0.1",
        "json://[{secret}",
    ],
)
def test_no_secret_of_a_url_is_seen_anywhere(url, dead_port, caplog, capfd):
    caplog.set_level(logging.NOTSET)
    for name in ("apprise", "urllib3", "requests"):
        logging.getLogger(name).setLevel(1)
    delivery = notify(telling(url.format(secret=SECRET, port=dead_port)), MESSAGE)
    for name in ("apprise", "urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert delivery.refused
    seen = repr(delivery) + caplog.text + "".join(capfd.readouterr()) + delivery.describe()
    assert SECRET.lower() not in seen.lower()
    assert "the deployment goes on" in caplog.text


def test_no_secret_is_seen_when_a_service_accepts_either(hook, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.DEBUG)
    delivery = notify(telling(hook.apprise_url(SECRET)), MESSAGE)
    logging.getLogger("urllib3").setLevel(logging.NOTSET)
    assert delivery.accepted
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_what_others_log_by_the_same_library_is_still_logged(hook, caplog):
    notify(telling(hook.apprise_url()), MESSAGE)
    logging.getLogger("apprise").warning("said by somebody else")
    assert "said by somebody else" in caplog.text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("jsons://user:pass@hooks.example.com:8443/path", "jsons://hooks.example.com"),
        ("mailtos://me:pass@example.com", "mailtos://example.com"),
        ("slack://TokenA/TokenB/TokenC/#ops", "slack (service 2)"),
        ("tgram://123456:token/chat", "tgram (service 2)"),
        ("ntfy://topic", "ntfy (service 2)"),
        ("https://hooks.slack.com/services/A/B/C", "https (service 2)"),
        ("no url at all", "service 2"),
        ("", "service 2"),
    ],
)
def test_a_service_is_named_without_its_secrets(url, name):
    assert service_name(url, 2) == name


def test_a_failure_of_our_own_is_not_raised_either(caplog):
    broken = telling("json://127.0.0.1").model_copy(update={"urls": [None]})  # as no form lets it be
    delivery = notify(broken, MESSAGE)
    assert delivery.refused[0].service == "all services"
    assert notified_finding(delivery).result is Result.FAILED


def test_how_it_went_is_said_in_one_line():
    assert Delivery().describe() == "no notification service is named"
