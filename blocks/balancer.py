"""The balancer that an application names: a block of one of the three kinds."""

from __future__ import annotations

from typing import cast

from prefect.blocks.core import Block
from pydantic import ValidationError

from blocks.haproxy import HAProxy
from blocks.host import address_of
from blocks.http_balancer import HttpBalancer
from blocks.nginx import Nginx
from rules.traffic import Balancer, Route

#: Every kind of balancer that deployments move traffic with.
KINDS: tuple[type[Block], ...] = (HAProxy, Nginx, HttpBalancer)


def load_route(balancer: str, key: str) -> Route | None:
    """Return the route of this key through the balancer's block of this name; an empty name: there is none.

    Raises:
        ValueError: no kind of balancer has a block of this name, or several have; or it names a host that
            does not exist, or has a field that its balancer cannot take.
    """
    if not balancer:
        return None
    found = [block for kind in KINDS if (block := _load(kind, balancer)) is not None]
    if not found:
        kinds = ", ".join(kind.get_block_type_name() for kind in KINDS)
        raise ValueError(f"there is no block {balancer} of any of the kinds {kinds}: create it first")
    if len(found) > 1:
        kinds = " and ".join(type(block).get_block_type_name() for block in found)
        raise ValueError(f"{balancer} is the name of a {kinds}: give one of them another name")
    return Route(balancer=_address(found[0]), key=key)


def _load(kind: type[Block], name: str) -> Block | None:
    try:
        return cast("Block", kind.load(name))
    except ValidationError:
        raise
    except ValueError:
        return None


def _address(block: Block) -> Balancer:
    match block:
        case HAProxy() | Nginx():
            return block.data(address_of(block.host))
        case HttpBalancer():
            return block.data()
        case _:
            raise TypeError(f"{block.get_block_type_name()} is no balancer")
