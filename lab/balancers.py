"""Save the block of a balancer, whichever it is.

Imported late, by whoever has set Prefect's settings: it reads them when it is imported.
"""

from __future__ import annotations

from typing import assert_never

from blocks.haproxy import HAProxy
from blocks.http_balancer import HttpBalancer
from blocks.nginx import Nginx
from rules.traffic import Balancer, HaproxyAddress, HttpBalancerAddress, NginxAddress


def save_balancer(name: str, address: Balancer) -> None:
    """Save the block that describes a balancer on this host; saved already is replaced."""
    fields = address.model_dump(mode="json", exclude={"balancer", "host"})
    match address:
        case HaproxyAddress():
            HAProxy(**fields).save(name, overwrite=True)
        case NginxAddress():
            Nginx(**fields).save(name, overwrite=True)
        case HttpBalancerAddress():
            HttpBalancer(**fields).save(name, overwrite=True)
        case unknown:
            assert_never(unknown)
