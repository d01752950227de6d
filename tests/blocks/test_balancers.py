"""An application names its balancer by the name of a block, of whichever kind."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from blocks.balancer import load_route
from blocks.haproxy import HAProxy
from blocks.host import Host
from blocks.http_balancer import HttpBalancer
from blocks.nginx import Nginx
from lab.balancers import save_balancer
from rules.hosts import HostAddress
from rules.traffic import HaproxyAddress, HttpBalancerAddress, NginxAddress, Route

SIDES = {"blue": {"blue-1": "127.0.0.1:8001"}, "green": {"green-1": "10.0.0.7:8001"}}
ADDRESSES = [
    HaproxyAddress(socket="/run/haproxy.sock", route_map="/etc/haproxy/routes.map"),
    NginxAddress(
        directory="/etc/nginx/sovereign",
        sides=SIDES,
        status_port=8099,
        access_log="/var/log/nginx/emily.log",
        upstream_directives=("keepalive 32",),
        reload=("systemctl", "reload", "nginx"),
    ),
    HttpBalancerAddress(url="http://127.0.0.1:8080/api", sides=("a", "b"), token_file="/etc/token"),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: address.balancer)
def test_a_route_goes_through_the_balancer_that_is_named(prefect_api, address):
    name = f"front-{address.balancer.replace('_', '-')}"
    save_balancer(name, address)
    assert load_route(name, "web") == Route(balancer=address, key="web")


def test_an_nginx_on_another_host_is_reached_there(prefect_api):
    Host(name="edge", address="10.0.0.9").save("edge", overwrite=True)
    Nginx(directory="/etc/nginx/sovereign", sides=SIDES, status_port=8099, host="edge").save(
        "front-edge", overwrite=True
    )
    route = load_route("front-edge", "web")
    assert route
    assert isinstance(route.balancer, NginxAddress)
    assert route.balancer.host == HostAddress(name="edge", address="10.0.0.9")


def test_no_name_is_no_balancer():
    assert load_route("", "web") is None


def test_a_name_that_nobody_has_says_which_kinds_were_looked_for(prefect_api):
    with pytest.raises(ValueError, match=r"no block nowhere of any of .*HAProxy.*nginx.*HTTP Balancer"):
        load_route("nowhere", "web")


def test_a_name_that_two_kinds_have_is_refused(prefect_api):
    HAProxy(socket="/run/haproxy.sock", route_map="/routes.map").save("twice", overwrite=True)
    HttpBalancer(url="http://127.0.0.1:8080").save("twice", overwrite=True)
    with pytest.raises(ValueError, match="Sovereign HAProxy and Sovereign HTTP Balancer"):
        load_route("twice", "web")


@pytest.mark.parametrize(
    "fields",
    [
        {"directory": "routes"},
        {"sides": {"blue": {"blue-1": "127.0.0.1:8001"}}},
        {"sides": {**SIDES, "green": {}}},
        {"sides": {**SIDES, "green": {"green-1": "127.0.0.1:1; } server { listen 80"}}},
        {"upstream": "emily active"},
        {"server_parameters": "down; server evil:80"},
        {"upstream_directives": ["keepalive 32; }"]},
    ],
)
def test_an_nginx_block_that_would_write_something_else_is_refused(fields):
    known = {"directory": "/etc/nginx/sovereign", "sides": SIDES, "status_port": 8099}
    with pytest.raises(ValidationError):
        Nginx(**{**known, **fields}).data(HostAddress())


@pytest.mark.parametrize(
    "fields",
    [{"url": "http://me:sesame@127.0.0.1/"}, {"url": "ftp://127.0.0.1/"}, {"sides": ("blue", "blue")}],
)
def test_an_api_with_a_password_in_its_address_or_one_environment_is_refused(fields):
    with pytest.raises(ValidationError):
        HttpBalancer(**{"url": "http://127.0.0.1:8080", **fields}).data()
