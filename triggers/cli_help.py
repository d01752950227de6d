"""What `--help` says."""

from __future__ import annotations

#: What each command is for, in the list of them.
IN_SHORT = {
    "plan": "show what would be done; nothing is changed",
    "deploy": "deploy a change, and watch it",
    "watch": "watch a deployment to its end",
    "approve": "answer a deployment that waits for approval",
    "abort": "have a running deployment taken back",
    "pause": "hold a running deployment",
    "resume": "let a paused deployment go on",
    "rollback": "take a promoted deployment back",
    "recover": "look after deployments whose process is gone",
    "history": "list deployments",
    "show": "show one deployment as it is",
}

#: What each command says of itself; after a line of \b alone lines stay as they are.
HELP = {
    "sovereign": """Deploy what runs a sovereign AI host, and always end in a known good state.

It speaks with the Prefect server that PREFECT_API_URL names (PREFECT_API_AUTH_STRING: user:password, where
the server wants it); a worker there does the work, and goes on when this command is stopped.

\b
Exit codes
  0  it went as asked: promoted, taken back as asked, listed
  1  something unexpected
  2  the request is wrong; nothing was started
  3  rolled back: all is verified to be as before
  4  the way back failed: a person has to act now
  5  blocked by the checklist; nothing was changed
  6  refused, aborted or locked; nothing was changed
  7  gave up waiting; it goes on
  8  Prefect's API is away, or lets nobody in
""",
    "plan": """Show what a deployment would do: each step, its way back, and the checklist.

Nothing is changed. Exits with 5 when the checklist would block it.

\b
Examples
  sovereign plan web.yaml
  sovereign plan web.yaml --set change.release=2.0.1 --set environment=production
  sovereign plan web.yaml --json | jq -r .page
""",
    "deploy": """Start a deployment and watch it: it ends promoted, or rolled back and verified.

The file has the fields of the run form: change, strategy, environment, evidence, attestations, waivers.
Stopping this command (Ctrl-C, --timeout) stops nothing: the deployment goes on.

\b
Examples
  sovereign deploy web.yaml
  sovereign deploy web.yaml --yes --set change.release=2.0.1
  sovereign deploy web.yaml --key "$CI_PIPELINE_ID" --json > result.json
  render-request | sovereign deploy - --no-wait
""",
    "watch": """Watch a deployment until it is promoted or has ended; the exit code says how.

\b
Examples
  sovereign watch 1a2b3c4d
  sovereign watch web-2-0-0-1a2b3c4d --timeout 600
""",
    "approve": """Answer a deployment that waits for approval.

\b
Examples
  sovereign approve 1a2b3c4d --by "Ada Lovelace" --words "plan read, backups fresh"
  sovereign approve 1a2b3c4d --by "Ada Lovelace" --refuse --words "not on a Friday"
""",
    "abort": """Have a deployment that runs take back what it has done.

It returns once the deployment was told; `watch` shows the way back.

\b
Examples
  sovereign abort web-2-0-0-1a2b3c4d --by Ada --reason "users complain"
""",
    "pause": """Hold a deployment that runs: traffic stays as it is; a bad side is taken back all the same.

\b
Examples
  sovereign pause web-2-0-0-1a2b3c4d --by Ada --reason "looking at a slow query"
""",
    "resume": """Let a paused deployment go on.

\b
Examples
  sovereign resume web-2-0-0-1a2b3c4d --by Ada --reason "the query was not ours"
""",
    "rollback": """Take a deployment back at once.

It is one that is promoted, was left open, or could not be taken back before.

Exits with 0 when it is rolled back, as asked.

\b
Examples
  sovereign rollback web-2-0-0-1a2b3c4d --reason "users do not like it"
""",
    "recover": """Bring every deployment whose process is gone to a known good state; safe at any time.

It is scheduled each minute anyway. With Prefect down: `python -m flows.recover` on the worker's host.
""",
    "history": """List deployments, newest first: what, where, how they ended and why.

\b
Examples
  sovereign history
  sovereign history --component application --state rolled_back --json
""",
    "show": """Show a deployment as it is now, or as it ended: steps, verdict, checklist, and what to do next.

\b
Examples
  sovereign show web-2-0-0-1a2b3c4d --timeline
""",
}
