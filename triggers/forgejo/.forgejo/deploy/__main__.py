"""Do one step of the workflow, by its name.

All values come by environment, so that none is ever part of a shell's text.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from .asked import AskedWrongError, asked, declared, request_of
from .health import health_of, look
from .runner import env, escaped, keep, kept, masked, only_words, output, place, say, sovereign
from .told import backed_up, page, told

#: `sovereign watch` gave up waiting, and the deployment goes on.
_GAVE_UP = 7
#: What `sovereign` says when it is certain that nothing was started.
_BAD_REQUEST, _NOTHING_DONE = 2, "Nothing was changed"
#: A cancelled job gets five minutes for its last steps: some to tell the deployment, the rest to watch it.
_TOLD_WITHIN_S, _ABORTED_WITHIN_S = 60, 210
_KEPT = ("request", "refused", "started", "ended", "backups", "health", "health_seen", "rolled_back")


def ask() -> int:
    """Write what is asked for; nothing is started."""
    auth = env("PREFECT_API_AUTH_STRING")
    masked(auth, auth.partition(":")[2])
    for name in _KEPT:
        place(name).unlink(missing_ok=True)
    if not shutil.which("sovereign"):
        return _refused("there is no `sovereign` on this runner's PATH: install sovereign-deploy there")
    try:
        found = asked(declared(Path(__file__).with_name("deploy.json")), os.environ)
        health = found["health"]
        if health:
            health_of(health)
    except (AskedWrongError, TypeError, ValueError) as error:
        return _refused(str(error))
    path = keep("request", request_of(found))
    keep("health", health)
    with only_words():
        say(path.read_text(encoding="utf-8"))
    output(release=found["change"]["release"], health_url=health.get("url", ""))
    return 0


def start() -> int:
    """Start the deployment; the same request in the same attempt of a run finds what it has started."""
    path = place("request")
    # the request is in it too: one run may deploy to staging first and then to production
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    run = (env("GITHUB_REPOSITORY"), env("GITHUB_RUN_ID"), env("GITHUB_RUN_ATTEMPT"))
    key = ":".join(("forgejo", *run, digest))
    code, said = sovereign("deploy", str(path), "--key", key, "--yes", "--no-wait", "--json")
    if code or not said.get("flow_run_id"):
        error = said.get("error", {})
        happened, state = str(error.get("happened", "")), str(error.get("state", ""))
        # a request without an answer may have been heard all the same
        if code == _BAD_REQUEST or state.startswith(_NOTHING_DONE):
            return _refused(happened, code=code)
        return _refused(f"{happened} {state}".strip(), code=code or 1, is_known=False)
    if not said.get("is_new", True):
        say("This attempt has started it before: it is watched, not started again.")
    keep("started", said)
    output(run=said["flow_run_id"])
    return 0


def watch() -> int:
    """Watch the deployment to its end; fails unless that is a good one."""
    return _watched(env("RUN"), env("WAIT_S") or "7200")


def backups() -> int:
    """Show which backups were taken before the rollout; fails where one is missing that is demanded."""
    code, said = sovereign("show", env("DEPLOYMENT"), "--json")
    if code:
        return code
    taken, missing = backed_up(said["journal"])
    for name in taken:
        say(f"taken, and read back: {name}")
    for name in missing:
        say(f"demanded by the environment, and not there: {name}")
    keep("backups", {"taken": taken})
    return 1 if missing else 0


def check_health() -> int:
    """Ask the application whether it is healthy, and in the release that was deployed."""
    seen = look(health_of(kept("health")))
    with only_words():
        say(seen.words)
    keep("health_seen", {"is_healthy": seen.is_healthy, "words": seen.words})
    return 0 if seen.is_healthy else 1


def roll_back() -> int:
    """Take the promoted deployment back, because its health check failed."""
    cause = f"the health check failed: {kept('health_seen').get('words', '')}"
    code, said = sovereign("rollback", env("DEPLOYMENT"), "--reason", cause[:1000], "--yes", "--json")
    keep("rolled_back", {**said, "exit_code": code, "cause": cause})
    return code


def abort() -> int:
    """Stop a deployment that nobody watches any more, and wait until it has taken back what it did."""
    run = _started()
    if not run:
        return 1
    by = f"{env('GITHUB_ACTOR')}, job {env('GITHUB_RUN_ID')} of {env('GITHUB_REPOSITORY')}"
    reason = "the job that watched it was cancelled, or gave up waiting"
    word = ("abort", run, "--by", by[:120], "--reason", reason, "--timeout", str(_TOLD_WITHIN_S))
    code, _ = sovereign(*word, "--json")
    if code:
        say("It could not be aborted. Whatever it does, it ends in a known good state by itself.")
    return _watched(run, str(_ABORTED_WITHIN_S))


def report() -> int:
    """Write the summary and the outputs, whatever happened; fails unless all of it went well."""
    said = told({name: kept(name) for name in _KEPT if place(name).exists()})
    with only_words():
        say(page(said))
    if path := env("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{page(said)}\n")
    output(
        release=said.release, run=said.run, deployment=said.deployment, state=said.state, reason=said.reason
    )
    if not said.is_good:
        say(f"::error::{escaped(f'{said.subject} {said.release}: {said.state}. {said.reason}')}")
    return 0 if said.is_good else 1


def _started() -> str:
    """Return the flow run that this attempt has started; empty: it was refused.

    A step that was killed before it could say so has perhaps started one: the same key finds it. If it had
    not, this starts it, to be aborted like the other: what cannot be told apart is treated alike.
    """
    if not (env("RUN") or kept("started") or kept("refused").get("is_known")):
        say("Whether it was started is not known: the same key finds it.")
        start()
    return env("RUN") or str(kept("started").get("flow_run_id", ""))


def _watched(run: str, wait_s: str) -> int:
    code, said = sovereign("watch", run, "--timeout", wait_s, "--json")
    keep("ended", {**said, "exit_code": code})
    output(
        deployment=str(said.get("deployment", "")),
        state=str(said.get("state", "")),
        gave_up=str(code == _GAVE_UP).lower(),
    )
    return code


def _refused(reason: str, *, code: int = _BAD_REQUEST, is_known: bool = True) -> int:
    """Keep why nothing was started, or that this is not known; return the step's exit code."""
    if reason:
        say(f"::error::{escaped(reason)}")  # in the summary too, with what it ended
    keep("refused", {"reason": reason, "is_known": is_known})
    return code


_STEPS = {
    "ask": ask,
    "start": start,
    "watch": watch,
    "backups": backups,
    "health": check_health,
    "roll-back": roll_back,
    "abort": abort,
    "report": report,
}

if __name__ == "__main__":
    sys.exit(_STEPS[sys.argv[1]]())
