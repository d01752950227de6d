"""Pause, resume or abort a deployment that runs, in whichever phase it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow, get_run_logger
from pydantic import Field

from rules.errors import InvalidRequestError
from tasks.control import Control, Word, ask
from tasks.known import journal_here
from tasks.prefect_api import PrefectApi
from tasks.runs import refuse_waiting_run
from tasks.settings import Settings

Person = Annotated[str, Field(min_length=2, max_length=120)]
Reason = Annotated[str, Field(min_length=3, max_length=2000)]


@flow(name="control", flow_run_name="{word} {deployment}")
def control(deployment: str, word: Word, by: Person, reason: Reason) -> str:
    """Leave a word for a running deployment; it hears it within seconds.

    That is so while it waits, measures or watches. A backup or a step that is in the middle of its effect is
    brought to its end first.

    Paused, it does not go on, and traffic stays where it is; a side that is shown to be bad is taken back all
    the same. Aborted, it takes back what it has done. A rollback that has begun is never paused.

    Args:
        deployment: its id, as in the name of its artifacts.
        word: pause, resume or abort.
        by: who says so.
        reason: why, for the record.

    Returns:
        What happens now, in words.

    Raises:
        InvalidRequestError: it does not run any more; says what to do instead.
    """
    settings = Settings()
    with PrefectApi(settings) as api:
        view = journal_here(deployment, api, settings).read()
        if view.state != "running":
            raise InvalidRequestError(_too_late(deployment, view.state))
        said = Control(word=word, by=by, reason=reason, at=datetime.now(UTC))
        ask(api, deployment, said)
        was_waiting = word == "abort" and refuse_waiting_run(
            api, view.opened.flow_run_id, by=by, words=f"Aborted: {reason}"
        )
    heard = (
        "it waited for approval, which is refused"
        if was_waiting
        else "it hears that within seconds, or after the step that it is at"
    )
    words = f"{deployment}: {word} by {by}; {heard}."
    get_run_logger().info("%s", words)
    return words


def _too_late(deployment: str, state: str) -> str:
    if state == "promoted":
        return f"{deployment} is promoted: nothing is left to {_WORDS}. To take it back, run roll-back."
    if state == "rolling_back":
        return f"{deployment} is being taken back, and that is never held up."
    return f"{deployment} is {state}: it has ended, and nothing was changed now."


_WORDS = "pause, resume or abort"
