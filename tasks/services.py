"""The services around one environment, resolved once, before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from prefect.blocks.core import Block

from blocks.alertmanager import Alertmanager
from blocks.forgejo import Forgejo
from blocks.grafana import Grafana
from blocks.notifications import Notifications
from blocks.prometheus import Prometheus
from rules.environment import Environment
from rules.errors import InvalidRequestError
from tasks.backup import Backup, load_backup

B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Services:
    """Whom an environment names; what it does not name is None. Holds secrets: never printed or kept."""

    prometheus: Prometheus | None = field(default=None, repr=False)
    alertmanager: Alertmanager | None = field(default=None, repr=False)
    grafana: Grafana | None = field(default=None, repr=False)
    forgejo: Forgejo | None = field(default=None, repr=False)
    notifications: Notifications | None = field(default=None, repr=False)
    backups: Mapping[str, Backup] = field(default_factory=dict, repr=False)


def load_services(environment: Environment) -> Services:
    """Return the services that an environment names.

    Raises:
        InvalidRequestError: it names a block that does not exist; nothing was touched.
    """
    try:
        return Services(
            prometheus=_loaded(Prometheus, environment.prometheus),
            alertmanager=_loaded(Alertmanager, environment.alertmanager),
            grafana=_loaded(Grafana, environment.grafana),
            forgejo=_loaded(Forgejo, environment.forgejo),
            notifications=_loaded(Notifications, environment.notifications),
            backups={reference: load_backup(reference) for reference in environment.backups},
        )
    except ValueError as error:
        raise InvalidRequestError(
            f"Environment {environment.name} names a block that cannot be used: {error} Nothing was touched. "
            "Create it in Prefect (Blocks), or take its name out of the environment."
        ) from error


def _loaded(kind: type[B], name: str | None) -> B | None:
    return cast("B", kind.load(name)) if name else None
