"""How it went, from what the steps have kept: a page for people, and outputs for other jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: What the steps keep, by the name they keep it under. Each may be missing: its step was not reached.
Kept = Mapping[str, Mapping[str, Any]]


#: The field that names what is changed, whichever component it is.
_SUBJECTS = ("application", "model", "cluster", "database", "index", "hosts", "content")
_SEE_LOG = "the step's log says why"


class Told(NamedTuple):
    """How a run of the workflow went."""

    is_good: bool
    subject: str
    release: str
    run: str
    deployment: str
    state: str  # the deployment's, `not started`, or `unknown` where nobody could watch it
    reason: str
    rows: tuple[tuple[str, str], ...]


def told(kept: Kept) -> Told:
    """Return how it went; good is only what ended well and whose health check did not fail."""
    request, ended = kept.get("request", {}), kept.get("ended", {})
    change = request.get("change", {})
    subject = " ".join(str(change[name]) for name in ("component", *_SUBJECTS) if name in change)
    state, reason = _how_it_is(kept)
    health = kept.get("health_seen", {})
    is_good = ended.get("exit_code") == 0 and "rolled_back" not in kept
    is_good = is_good and health.get("is_healthy", True) and not _is_unasked(kept)
    run = str(kept.get("started", {}).get("flow_run_id", ""))
    deployment = str(ended.get("deployment", ""))
    rows = (
        ("release", str(change.get("release", ""))),
        ("state", state),
        ("reason", reason),
        ("deployment", deployment),
        ("flow run", run),
        ("environment", str(request.get("environment", "development"))),
        ("strategy", str(request.get("strategy", {}).get("strategy", ""))),
        ("commit", str(request.get("evidence", {}).get("commit", ""))),
        ("backups", _backups(kept)),
        ("health check", _health(kept)),
    )
    return Told(is_good, subject, rows[0][1], run, deployment, state, reason, rows)


def backed_up(journal: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the backups that were taken and read back, and which that are demanded are not among them.

    None is missing as long as nothing was changed.

    Args:
        journal: a deployment's entries, as `sovereign show --json` has them.
    """
    opened = next(entry for entry in journal if entry["entry"] == "opened")
    backups = [entry for entry in journal if entry["entry"] == "backed_up"]
    sound = [one["taken"] for one in backups if one["verified"]["result"] == "passed"]
    sources = {taken["source"] for taken in sound}
    has_changed = any(entry["entry"] == "intent" for entry in journal)
    demanded = opened["environment"]["backups"] if has_changed else ()
    missing = [name for name in demanded if name not in sources]
    return [f"{taken['source']}: {taken['identity']}" for taken in sound], missing


def page(said: Told) -> str:
    """Return the summary as Markdown."""
    title = f"# {said.subject} {said.release}: {said.state}" if said.subject else "# Nothing was asked for"
    lines = [f"| {name} | {_cell(value)} |" for name, value in said.rows if value]
    return "\n".join([title, "", "| | |", "|---|---|", *lines])


def _how_it_is(kept: Kept) -> tuple[str, str]:
    """Return the deployment's state and why, after all that the steps did about it."""
    back, ended = kept.get("rolled_back"), kept.get("ended")
    if back is not None:
        cause = str(back.get("cause", ""))
        if back.get("exit_code") == 0:
            return "rolled_back", cause
        state = str(back.get("state") or "unknown")
        return (
            state,
            f"{cause}. It could not be taken back: {_why(back)}",
        )
    if ended is not None:
        return str(ended.get("state") or "unknown"), _why(ended)
    if "started" in kept:
        return "unknown", "It was started, and nobody watched it to its end: `sovereign show` says how it is."
    refused = kept.get("refused", {})
    state = "not started" if refused.get("is_known", True) else "unknown"
    return state, str(refused.get("reason") or _SEE_LOG)


def _why(document: Mapping[str, Any]) -> str:
    """Return the reason that a document of `sovereign` gives, or what went wrong with the command itself."""
    happened = document.get("error", {}).get("happened")
    return str(document.get("reason") or happened or _SEE_LOG)


def _is_unasked(kept: Kept) -> bool:
    """Whether a health check was wanted, and none was made to its end."""
    return bool(kept.get("health")) and "health_seen" not in kept


def _backups(kept: Kept) -> str:
    backups = kept.get("backups")
    if backups is None:
        return ""
    return "; ".join(backups.get("taken", ())) or "the environment names none"


def _health(kept: Kept) -> str:
    if not kept.get("health"):
        return "none is declared"
    seen = kept.get("health_seen")
    if seen is None:
        return "not made"
    return f"{'healthy' if seen.get('is_healthy') else 'failed'}: {seen.get('words', '')}"


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
