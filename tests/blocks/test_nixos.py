"""A block of NixOS hosts: what it hands on, and what it refuses before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from blocks.haproxy import HAProxy
from blocks.host import Host
from blocks.nixos import NixosMember, SovereignNixosHosts, load_nixos_hosts
from rules.errors import InvalidRequestError
from rules.fleet import HostService, Instance, NixProfile
from rules.hosts import HostAddress
from rules.nixos import NixosHost, NixosPlaces, NixosProbe
from rules.traffic import HaproxyAddress, Route


def hosts(*members: dict[str, Any], **more: Any) -> SovereignNixosHosts:
    return SovereignNixosHosts(hosts=[NixosMember(**member) for member in members], **more)


def test_a_host_needs_nothing_but_a_name_to_be_a_nixos_as_it_is_installed():
    (instance,) = hosts({"name": "web-1"}).fleet("web").instances
    assert instance == Instance(
        name="web-1",
        layout=NixProfile(profile="/nix/var/nix/profiles/system"),
        service=HostService(),
        probe=NixosProbe(current="/run/current-system"),
        nixos=NixosHost(),
    )


def test_a_host_gives_all_that_is_declared_about_its_system():
    places = NixosPlaces(profile="/srv/profile", current="/srv/current")
    declared = {
        "attribute": "web",
        "channel": "stable",
        "build_on": "worker",
        "urls": ["http://10.0.0.7/health"],
        "guard_s": 50.0,
        "activate_s": 20.0,
        "settle_s": 10.0,
        "reboot_s": 40.0,
        "build_s": 900.0,
        "places": places,
    }
    (instance,) = hosts({"name": "web-1", **declared}).fleet("web").instances
    assert set(declared) == set(NixosHost.model_fields), "a field that this test does not hand on"
    assert instance.nixos_host == NixosHost(**{**declared, "urls": ("http://10.0.0.7/health",)})
    assert instance.layout == NixProfile(profile="/srv/profile")
    assert instance.probe == NixosProbe(current="/srv/current", urls=("http://10.0.0.7/health",))


def test_a_form_has_the_defaults_of_what_it_becomes():
    for name, field in NixosHost.model_fields.items():
        default = NixosMember.model_fields[name].get_default(call_default_factory=True)
        assert (tuple(default) if isinstance(default, list) else default) == field.default, name


@pytest.mark.parametrize("form", [SovereignNixosHosts, NixosMember])
def test_every_field_of_the_form_is_explained(form):
    assert all(field.description for field in form.model_fields.values())


def test_the_block_is_known_by_its_own_name():
    assert SovereignNixosHosts.get_block_type_name() == "Sovereign NixOS Hosts"
    assert SovereignNixosHosts.get_block_type_slug() == "sovereign-nixos-hosts"


def test_a_guard_that_would_act_during_a_slow_activation_is_refused():
    member = {"name": "web-1", "guard_s": 89.0, "activate_s": 60.0, "settle_s": 30.0}
    with pytest.raises(InvalidRequestError, match=r"Nothing was touched\. Give it a guard_s of 90 s"):
        hosts(member).fleet("web")
    (instance,) = hosts({**member, "guard_s": 90.0}).fleet("web").instances
    assert instance.nixos_host.guard_s == 90


def test_one_host_under_two_names_is_refused():
    with pytest.raises(InvalidRequestError, match=r"web-1 and web-2 are one host: the worker itself"):
        hosts({"name": "web-1"}, {"name": "web-2"}).fleet("web")


def test_two_systems_on_one_machine_are_two_hosts():
    other = NixosPlaces(profile="/srv/other/system")
    fleet = hosts({"name": "web-1"}, {"name": "web-2", "places": other}).fleet("web")
    assert fleet.names == ("web-1", "web-2")


def test_a_url_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(InvalidRequestError, match="Nothing was touched") as raised:
        hosts({"name": "web-1", "urls": ["http://10.0.0.7/", "http://me:sesame@10.0.0.7/"]}).fleet("web")
    assert "sesame" not in str(raised.value)


def test_a_url_of_no_web_server_is_refused():
    with pytest.raises(ValidationError, match="urls"):
        hosts({"name": "web-1", "urls": ["10.0.0.7"]}).fleet("web")


def test_hosts_and_balancer_are_found_by_the_names_of_their_blocks(prefect_api):
    Host(name="web-1", address="10.0.0.7").save("nixos-web-1", overwrite=True)
    HAProxy(socket="/run/haproxy.sock", route_map="/routes.map").save("nixos-front", overwrite=True)
    hosts(
        {"name": "web-1", "host": "nixos-web-1", "backend": "blue", "server": "blue-1"},
        {"name": "web-2", "backend": "green", "server": "green-1"},
        balancer="nixos-front",
        smoke_script="true",
    ).save("nixos-web", overwrite=True)
    fleet = load_nixos_hosts("nixos-web")
    assert fleet.instance("web-1").host == HostAddress(name="web-1", address="10.0.0.7")
    assert fleet.instance("web-2").host == HostAddress()
    assert (fleet.side("blue")[0].server, fleet.side("green")[0].server) == ("blue-1", "green-1")
    front = HaproxyAddress(socket="/run/haproxy.sock", route_map="/routes.map", host=HostAddress())
    assert fleet.route == Route(balancer=front, key="nixos-web")
    assert fleet.smoke_script == "true"
