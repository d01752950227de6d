"""A stand-in for Forgejo: the parts of its API that deployments use, after its published schema.

Statuses, paths, fields, headers and error bodies are those of `/api/v1`; what is behind them is a few lists
that a test fills. It answers from a thread of this process, and ends with it.
"""

from __future__ import annotations

import dataclasses
import hmac
import itertools
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self, cast
from urllib.parse import parse_qs, urlsplit

from pydantic import SecretStr

from blocks.forgejo import Forgejo
from lab.ports import LOCALHOST, free_port, give_back

_NOT_FOUND = "The target couldn't be found."
_WORST_FIRST = ("error", "failure", "pending", "warning", "success")
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclasses.dataclass
class Answer:
    """What is sent back: `body` None is an empty body."""

    status: int
    body: object = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Issue:
    """An issue, with the comments below it."""

    number: int
    title: str
    body: str
    state: str = "open"
    comments: list[str] = dataclasses.field(default_factory=list)


class LabForgejo:
    """One private repository, at `url` while the `with` block lasts.

    Args:
        owner: its organisation.
        repository: its name.
        token: the access token that may read and write it.
        page_size: most rows of one answer, whatever is asked for.
    """

    def __init__(
        self,
        *,
        owner: str = "team",
        repository: str = "web",
        token: str = "lab-token",  # noqa: S107 - opens nothing but this
        page_size: int = 50,
    ) -> None:
        self.owner, self.repository, self.token, self.page_size = owner, repository, token, page_size
        self.heads: dict[int, str] = {}
        self.reviews: dict[int, list[dict[str, Any]]] = {}
        self.statuses: dict[str, dict[str, str]] = {}
        self.issues: list[Issue] = []
        self.failing: list[int] = []  # statuses that the next requests get, whatever they ask for
        self.seen: list[tuple[str, str]] = []
        self._numbers = itertools.count(1)
        self._port = free_port()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self._port, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        give_back(self._port)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{LOCALHOST}:{self._port}"

    def block(self, **changed: Any) -> Forgejo:
        """Return the block for it, with some fields changed."""
        fields = {
            "url": self.url,
            "owner": self.owner,
            "repository": self.repository,
            "token": SecretStr(self.token),
            "timeout_s": 5.0,
        }
        return Forgejo(**{**fields, **changed})

    def open_pull(self, head: str, number: int = 1) -> int:
        """Open a pull request whose branch is at `head`, and return its number."""
        self.heads[number] = head
        self.reviews.setdefault(number, [])
        return number

    def push(self, head: str, number: int = 1) -> None:
        """Move a pull request's branch: what was reviewed before is stale from then on."""
        self.heads[number] = head
        for review in self.reviews[number]:
            review["stale"] = True

    def add_review(
        self,
        user: str,
        state: str = "APPROVED",
        *,
        number: int = 1,
        official: bool = True,
        dismissed: bool = False,
        commit: str | None = None,
    ) -> int:
        """Add a review of the commit that the pull request is at, and return its id."""
        identity = next(self._numbers)
        when = (_BEGAN + timedelta(minutes=identity)).isoformat().replace("+00:00", "Z")
        page = f"{self.url}/{self.owner}/{self.repository}/pulls/{number}"
        self.reviews[number].append(
            {
                "id": identity,
                "user": {
                    "id": identity,
                    "login": user,
                    "full_name": "",
                    "email": f"{user}@noreply.localhost",
                },
                "team": None,
                "state": state,
                "body": "",
                "commit_id": commit or self.heads[number],
                "stale": False,
                "official": official,
                "dismissed": dismissed,
                "comments_count": 0,
                "submitted_at": when,
                "updated_at": when,
                "html_url": f"{page}#issuecomment-{identity}",
                "pull_request_url": page,
            }
        )
        return identity

    def set_status(self, commit: str, context: str, state: str) -> None:
        """Let the check `context` say `state` of a commit; an empty `context` only makes the commit known."""
        checks = self.statuses.setdefault(commit, {})
        if context:
            checks[context] = state

    def answer(self, method: str, target: str, *, authorization: str, body: bytes) -> Answer:
        """Return the answer to one request."""
        self.seen.append((method, target))
        if self.failing:
            return _error(self.failing.pop(0), "told to fail")
        parts = urlsplit(target)
        prefix = f"/api/v1/repos/{self.owner}/{self.repository}/"
        if authorization and not hmac.compare_digest(authorization, f"token {self.token}"):
            return _error(401, "invalid username, password or token")
        if method in {"POST", "PATCH"} and not authorization:
            return _error(401, "token is required")
        # what may not be read does not exist
        if not authorization or not parts.path.startswith(prefix):
            return _error(404, _NOT_FOUND)
        return self._route(method, parts.path.removeprefix(prefix), _Query(parts.query, self), body)

    def _route(self, method: str, path: str, query: _Query, body: bytes) -> Answer:
        for (verb, pattern), handler in self._ROUTES.items():
            if verb == method and (match := re.fullmatch(pattern, path)):
                try:
                    sent = json.loads(body or b"{}")
                except ValueError:
                    return _error(422, "invalid JSON")
                return cast("Answer", getattr(self, handler)(match[1] if match.groups() else "", query, sent))
        return _error(404, _NOT_FOUND)

    _ROUTES: ClassVar[dict[tuple[str, str], str]] = {
        ("GET", r"pulls/(\d+)"): "_pull",
        ("GET", r"pulls/(\d+)/reviews"): "_reviews",
        ("GET", r"commits/([^/]+)/status"): "_status",
        ("POST", r"issues"): "_open_issue",
        ("GET", r"issues/(\d+)"): "_issue",
        ("PATCH", r"issues/(\d+)"): "_edit_issue",
        ("POST", r"issues/(\d+)/comments"): "_comment",
    }

    def _pull(self, number: str, _query: _Query, _sent: object) -> Answer:
        if int(number) not in self.heads:
            return _error(404, _NOT_FOUND)
        head = {"label": "change", "ref": "change", "sha": self.heads[int(number)]}
        page = f"{self.url}/{self.owner}/{self.repository}/pulls/{number}"
        return Answer(
            200, {"number": int(number), "state": "open", "merged": False, "head": head, "html_url": page}
        )

    def _reviews(self, number: str, query: _Query, _sent: object) -> Answer:
        if int(number) not in self.reviews:
            return _error(404, _NOT_FOUND)
        rows = self.reviews[int(number)]
        return Answer(200, query.page_of(rows), query.headers(len(rows)))

    def _status(self, commit: str, query: _Query, _sent: object) -> Answer:
        if commit not in self.statuses:
            return _error(404, _NOT_FOUND)
        checks = self.statuses[commit]
        rows = [
            {"id": n, "status": state, "context": context, "target_url": "", "description": ""}
            for n, (context, state) in enumerate(checks.items(), start=1)
        ]
        shown = query.page_of(rows)
        # the forge combines what it shows: the checks of one page
        said = [row["status"] for row in shown]
        state = next((state for state in _WORST_FIRST if state in said), "")
        combined = {"state": state, "sha": commit if shown else "", "total_count": len(shown)}
        return Answer(200, {**combined, "statuses": shown or None, "commit_url": "", "url": ""})

    def _open_issue(self, _: str, _query: _Query, sent: dict[str, Any]) -> Answer:
        if not sent.get("title"):
            return _error(422, "[Title]: Required")
        issue = Issue(len(self.issues) + 1, sent["title"], sent.get("body", ""))
        self.issues.append(issue)
        return Answer(201, self._shown(issue))

    def _issue(self, number: str, _query: _Query, _sent: object) -> Answer:
        issue = self._find(number)
        return Answer(200, self._shown(issue)) if issue else _error(404, _NOT_FOUND)

    def _edit_issue(self, number: str, _query: _Query, sent: dict[str, Any]) -> Answer:
        issue = self._find(number)
        if not issue:
            return _error(404, _NOT_FOUND)
        issue.state = sent.get("state", issue.state)
        return Answer(201, self._shown(issue))

    def _comment(self, number: str, _query: _Query, sent: dict[str, Any]) -> Answer:
        issue = self._find(number)
        if not issue:
            return _error(404, _NOT_FOUND)
        issue.comments.append(sent.get("body", ""))
        return Answer(201, {"id": next(self._numbers), "body": issue.comments[-1]})

    def _find(self, number: str) -> Issue | None:
        return next((issue for issue in self.issues if issue.number == int(number)), None)

    def _shown(self, issue: Issue) -> dict[str, Any]:
        page = f"{self.url}/{self.owner}/{self.repository}/issues/{issue.number}"
        said = {"number": issue.number, "title": issue.title, "body": issue.body, "state": issue.state}
        return {**said, "id": issue.number, "comments": len(issue.comments), "html_url": page}


class _Query:
    """Which page is asked for, and how many rows of it are given."""

    def __init__(self, text: str, forge: LabForgejo) -> None:
        values = parse_qs(text)
        self.page = max(1, int(values.get("page", ["1"])[0]))
        self.limit = min(int(values.get("limit", [str(forge.page_size)])[0]), forge.page_size)

    def page_of(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows[(self.page - 1) * self.limit : self.page * self.limit]

    def headers(self, total: int) -> dict[str, str]:
        return {"X-Total-Count": str(total), "Access-Control-Expose-Headers": "X-Total-Count"}


def _error(status: int, message: str) -> Answer:
    body: dict[str, object] = {"message": message, "url": "http://forge/api/swagger"}
    return Answer(status, {**body, "errors": []} if status == 404 else body)  # noqa: PLR2004 - only it has them


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, forge: LabForgejo) -> None:
        self.forge = forge
        super().__init__((LOCALHOST, port), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: Nagle would add 40 ms to each answer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer = cast("_Server", self.server).forge.answer(
            self.command, self.path, authorization=self.headers.get("Authorization", ""), body=body
        )
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json;charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = _serve  # noqa: N815 - the server finds them by these names

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""
