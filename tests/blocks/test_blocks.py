"""What people fill in in Prefect's forms becomes the values that we work with."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from blocks.haproxy import HAProxy
from blocks.host import Host
from blocks.http_balancer import HttpBalancer
from blocks.nginx import Nginx
from rules.hosts import HostAddress
from rules.traffic import HaproxyAddress, HttpBalancerAddress, NginxAddress

REMOTE = HostAddress(
    name="db",
    address="10.0.0.7",
    user="deploy",
    port=2222,
    identity_file="/keys/id",
    known_hosts_file="/keys/known",
    connect_timeout_s=7,
)


def test_a_host_without_an_address_is_the_workers_own():
    assert Host().data() == HostAddress()


def test_a_host_gives_all_its_fields():
    assert Host(**REMOTE.model_dump()).data() == REMOTE


def test_a_host_that_ssh_would_take_for_an_option_is_refused():
    with pytest.raises(ValidationError):
        Host(address="-oProxyCommand=x").data()


def test_a_balancer_gives_its_fields_and_the_host_it_names():
    block = HAProxy(
        socket="/run/haproxy.sock",
        route_map="/etc/haproxy/routes.map",
        server_state="/var/lib/haproxy/state",
        host="db",
        timeout_s=3,
    )
    assert block.data(REMOTE) == HaproxyAddress(
        socket="/run/haproxy.sock",
        route_map="/etc/haproxy/routes.map",
        server_state="/var/lib/haproxy/state",
        host=REMOTE,
        timeout_s=3,
    )


def test_a_balancer_with_a_relative_socket_is_refused():
    with pytest.raises(ValidationError):
        HAProxy(socket="haproxy.sock", route_map="/routes.map").data(HostAddress())


@pytest.mark.parametrize(
    ("block", "value"),
    [
        (Host, HostAddress),
        (HAProxy, HaproxyAddress),
        (Nginx, NginxAddress),
        (HttpBalancer, HttpBalancerAddress),
    ],
)
def test_a_block_has_the_fields_and_defaults_of_its_value(block, value):
    # which kind it is says its block's type, and a host is named there
    fields = set(value.model_fields) - {"balancer"}
    assert set(block.model_fields) == fields
    for name in fields - {"host"}:
        default, wanted = (
            of.model_fields[name].get_default(call_default_factory=True) for of in (block, value)
        )
        assert (tuple(default) if isinstance(default, list) else default) == wanted


@pytest.mark.parametrize("block", [Host, HAProxy, Nginx, HttpBalancer])
def test_every_field_of_a_form_is_explained(block):
    assert all(field.description for field in block.model_fields.values())


@pytest.mark.parametrize(
    ("block", "name", "slug"),
    [
        (Host, "Sovereign Host", "sovereign-host"),
        (HAProxy, "Sovereign HAProxy", "sovereign-haproxy"),
        (Nginx, "Sovereign nginx", "sovereign-nginx"),
        (HttpBalancer, "Sovereign HTTP Balancer", "sovereign-http-balancer"),
    ],
)
def test_a_block_is_known_by_its_own_name(block, name, slug):
    assert (block.get_block_type_name(), block.get_block_type_slug()) == (name, slug)
