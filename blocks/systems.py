"""What a change is about: the blocks it names, resolved to values before anything is touched."""

from __future__ import annotations

from blocks.application import load_fleet
from blocks.database import load_database
from blocks.ray_cluster import load_ray_cluster
from blocks.sglang import load_model
from rules.change import ApplicationRelease, Change, IndexChange, ModelRelease, RayRelease, SchemaChange
from rules.database import Database
from rules.fleet import NOBODY, Fleet
from rules.frozen import Frozen


class Systems(Frozen):
    """The fleet that is changed or whose users would notice, and the database, if one is changed."""

    fleet: Fleet
    database: Database | None = None
    users: tuple[Fleet, ...] = ()


def load_systems(change: Change) -> Systems:
    """Return all systems that a change is about, as plain values without a secret.

    Raises:
        ValueError: a block that it names does not exist.
    """
    fleet = load_fleet(change.watched) if change.watched else NOBODY
    match change:
        case ApplicationRelease():
            return Systems(fleet=fleet)
        case ModelRelease():
            return Systems(fleet=load_model(change.model))
        case RayRelease():
            return Systems(fleet=load_ray_cluster(change.cluster))
        case SchemaChange():
            others = tuple(load_fleet(served.application) for served in change.serves[1:])
            users = (fleet, *others) if change.serves else ()
            return Systems(fleet=fleet, database=load_database(change.database), users=users)
        case IndexChange():
            return Systems(fleet=fleet, database=load_database(change.database))
