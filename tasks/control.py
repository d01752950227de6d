"""A person's word to a running deployment: pause, resume, abort. Kept as a Prefect variable, for any host."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from rules.frozen import Frozen
from tasks.prefect_api import PrefectApi

Word = Literal["pause", "resume", "abort"]
_GONE = frozenset({404})
_TAKEN = frozenset({409, 422})


class Control(Frozen):
    """What a person asked of a deployment, who, why and when."""

    word: Word
    by: str
    reason: str
    at: datetime


def control_name(deployment: str) -> str:
    """Return the name of the variable that carries persons' words to `deployment`."""
    return f"sovereign_control_{deployment.replace('-', '_')}"


def ask(api: PrefectApi, deployment: str, control: Control) -> None:
    """Leave a word for a deployment; a newer one replaces it.

    Raises:
        ApiUnavailableError: it could not be left; the deployment goes on as it was.
    """
    row = {"name": control_name(deployment), "value": control.model_dump(mode="json")}
    response = api.request("POST", "variables/", {**row, "tags": ["sovereign-control"]}, accept=_TAKEN)
    if response.status_code in _TAKEN:
        api.request("PATCH", f"variables/name/{row['name']}", {"value": row["value"]})


def asked(api: PrefectApi, deployment: str) -> Control | None:
    """Return the newest word for a deployment; None: there is none.

    Raises:
        ApiUnavailableError: the API does not answer.
    """
    response = api.request("GET", f"variables/name/{control_name(deployment)}", accept=_GONE)
    return None if response.status_code in _GONE else Control.model_validate(response.json()["value"])


def forget(api: PrefectApi, deployment: str) -> None:
    """Remove what was asked of a deployment that has ended; nothing there is fine.

    Raises:
        ApiUnavailableError: the API does not answer.
    """
    api.request("DELETE", f"variables/name/{control_name(deployment)}", accept=_GONE)
