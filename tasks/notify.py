"""Telling people, without ever being in the way: no failure gets out, and no service is waited for long."""

from __future__ import annotations

import logging
import re
import threading
import time

from blocks.notifications import Notifications
from rules.finding import Finding
from rules.frozen import Frozen, Seconds
from rules.message import Message

log = logging.getLogger(__name__)

#: Schemes whose URL names a real host in the host's place. In many others a token stands there.
_WITH_HOST = frozenset(
    f"{scheme}{secure}"
    for scheme in ("json", "xml", "form", "mailto", "gotify", "mmost", "apprise")
    for secure in ("", "s")
)
_THREAD = "sovereign-notify"
#: Libraries that say in their logs where they send to, and with that what must stay secret.
_TALKATIVE = ("apprise", "urllib3", "urllib3.connectionpool", "requests")


class Refused(Frozen):
    """A service that did not take the message, and why, in words of ours."""

    service: str
    reason: str


class Delivery(Frozen):
    """Which services took a message. Services are named by scheme, and by host where that is no secret."""

    accepted: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    took_s: Seconds = 0.0

    @property
    def was_tried(self) -> bool:
        """Whether there was a service to tell."""
        return bool(self.accepted or self.refused)

    def describe(self) -> str:
        """Return how it went in one line."""
        words = [f"accepted by {', '.join(self.accepted)}"] if self.accepted else []
        words += [f"not by {one.service}: {one.reason}" for one in self.refused]
        return "; ".join(words) or "no notification service is named"


def notify(notifications: Notifications | None, message: Message) -> Delivery:
    """Tell all services at once, and return which of them took the message within `timeout_s`.

    It never raises an error, whatever a service does. One that has not answered in time is left behind in a
    thread that ends with its own timeouts or with this process.

    Args:
        notifications: whom to tell; None: nobody, which is no error.
        message: what to tell.
    """
    began = time.monotonic()
    try:
        delivery = _tell_all(notifications, message, began=began) if notifications else Delivery()
    except Exception as error:  # noqa: BLE001 - telling people must never stop a deployment or a rollback
        refused = Refused(service="all services", reason=f"telling them failed with {type(error).__name__}")
        delivery = Delivery(refused=(refused,), took_s=time.monotonic() - began)
    if delivery.refused:
        log.warning("'%s' was %s; the deployment goes on", message.title, delivery.describe())
    elif delivery.accepted:
        log.info("'%s' was %s", message.title, delivery.describe())
    return delivery


def notified_finding(delivery: Delivery) -> Finding:
    """Return whether the team was told, for the checklist: one service that took the message is enough."""
    if not delivery.was_tried:
        return Finding.unknown("no notification service is named in this environment")
    return Finding.judged(delivery.describe(), ok=bool(delivery.accepted))


def service_name(url: str, number: int) -> str:
    """Return what a service is called in words that people and logs may see.

    Args:
        url: its Apprise URL, with its secrets.
        number: its place among the block's URLs, from 1: where the host is a secret, this tells them apart.
    """
    match = re.match(r"([a-z][a-z0-9]{1,19})://(?:[^/@?#]*@)?([A-Za-z0-9.-]+)?", url.strip())
    if match is None:
        return f"service {number}"
    scheme, host = match.groups()
    return f"{scheme}://{host}" if scheme in _WITH_HOST and host else f"{scheme} (service {number})"


def _tell_all(notifications: Notifications, message: Message, *, began: float) -> Delivery:
    timeout_s = notifications.timeout_s
    _hush()
    calls = [
        _Call(url.get_secret_value(), number, message=message, timeout_s=timeout_s)
        for number, url in enumerate(notifications.urls, start=1)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join(max(0.0, began + timeout_s - time.monotonic()))
    accepted, refused = [], []
    for call in calls:
        reason = f"no answer within {timeout_s:g} s" if call.is_alive() else call.failure
        if reason:
            refused.append(Refused(service=call.service, reason=reason))
        else:
            accepted.append(call.service)
    return Delivery(accepted=tuple(accepted), refused=tuple(refused), took_s=time.monotonic() - began)


class _Call(threading.Thread):
    """One service told; a daemon, so that one that never answers keeps no process alive."""

    def __init__(self, url: str, number: int, *, message: Message, timeout_s: float) -> None:
        self.service = service_name(url, number)
        super().__init__(name=f"{_THREAD} {self.service}", daemon=True)
        self.failure: str = "it was not tried"
        self.said: list[str] = []
        self._url, self._message, self._timeout_s = url, message, timeout_s

    def run(self) -> None:
        """Tell it; nothing gets out but `failure`, empty when it accepted."""
        try:
            self.failure = self._tell()
        except Exception as error:  # noqa: BLE001 - see `notify`; the text of the error may hold the URL
            self.failure = f"telling it failed with {type(error).__name__}"

    def _tell(self) -> str:
        # a third of a second that only who tells somebody waits for, and within the timeout
        import apprise  # noqa: PLC0415

        service = apprise.Apprise.instantiate(self._url, suppress_exceptions=True)
        if not isinstance(service, apprise.NotifyBase):
            return "its URL is not one that Apprise understands; mend the Notifications block"
        service.socket_connect_timeout = service.socket_read_timeout = self._timeout_s
        told = apprise.Apprise()
        told.add(service)
        accepted = told.notify(
            title=self._message.title,
            body=self._message.body,
            notify_type=apprise.NotifyType(self._message.severity),
            body_format=apprise.NotifyFormat.MARKDOWN,
        )
        return "" if accepted else _reason(" ".join(self.said))


def _reason(said: str) -> str:
    """Return why a service refused; of what the library said only what is known to hold no secret."""
    if status := re.search(r"\berror=(\d{3})\b", said):
        return f"it answered {status[1]}"
    if "onnection error" in said or "ocket" in said:
        return "it cannot be reached, or did not answer"
    return "it did not accept the message"


class _Hush(logging.Filter):
    """Keep what libraries log in our threads to ourselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record pass unless one of our calls logged it."""
        thread = threading.current_thread()
        if not isinstance(thread, _Call):
            return True
        if record.levelno >= logging.WARNING:
            thread.said.append(record.getMessage())
        return False


_hushing = _Hush()


def _hush() -> None:
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_hushing)  # a second time changes nothing
