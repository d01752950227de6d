"""What a change is about: the blocks it names, resolved to values before anything is touched."""

from __future__ import annotations

from blocks.application import load_fleet
from blocks.database import load_database
from blocks.ipfs import load_content
from blocks.nixos import load_nixos_hosts
from blocks.ray_cluster import load_ray_cluster
from blocks.sglang import load_model
from rules.change import ApplicationRelease, IndexChange, ModelRelease, RayRelease, SchemaChange
from rules.content_change import ContentRelease
from rules.database import Database
from rules.fleet import NOBODY, Fleet
from rules.frozen import Frozen
from rules.ipfs import IpfsContent
from rules.release import Deployed, Release
from rules.system_change import SystemRelease


class Systems(Frozen):
    """The fleet that is changed or whose users would notice, and the database and content, if they are."""

    fleet: Fleet
    database: Database | None = None
    content: IpfsContent | None = None
    users: tuple[Fleet, ...] = ()


def load_systems(change: Deployed) -> Systems:
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
        case SystemRelease():
            return Systems(fleet=load_nixos_hosts(change.hosts))
        case ContentRelease():
            content, database = load_content(change.content)
            return Systems(fleet=fleet, database=database, content=content)
        case SchemaChange():
            others = tuple(load_fleet(served.application) for served in change.serves[1:])
            users = (fleet, *others) if change.serves else ()
            return Systems(fleet=fleet, database=load_database(change.database), users=users)
        case IndexChange():
            return Systems(fleet=fleet, database=load_database(change.database))
        case Release():
            return Systems(fleet=NOBODY)  # each component names its own
