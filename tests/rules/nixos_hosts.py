"""NixOS hosts, the facts of them, and changes of their systems, for the tests of the rules."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from rules.fleet import Fleet, FleetState, HostService, Instance, InstanceState, NixProfile
from rules.hosts import HostAddress
from rules.nixos import (
    ClosureDifference,
    HostFacts,
    NixosHost,
    NixosProbe,
    NixosSituation,
    SystemNames,
    UnitsAffected,
)
from rules.nixos_plan import plan_nixos
from rules.plan import Plan
from rules.strategy import BlueGreen, Canary, InPlace, Rolling, Strategy
from rules.system_change import NixosChannel, NixosClosures, NixosFlake, SystemRelease
from rules.traffic import HaproxyAddress, Route, Traffic

ROUTE = Route(balancer=HaproxyAddress(socket="/run/haproxy.sock", route_map="/etc/routes.map"), key="web")
VERSION = "26.05.2"
FLAKE = NixosFlake(flake="git+https://git.example/infra?rev=abc")
CHANNEL = NixosChannel(url="https://channels.example/nixos-26.05")
RESTARTS = UnitsAffected(restarted=("web.service",))


def system(host: str, number: int) -> str:
    """Return the store path of a host's system; number 2 is the new one."""
    return f"/nix/store/{number:032}-nixos-system-{host}-26.05.{number}"


def release(**fields: Any) -> SystemRelease:
    return SystemRelease(**{"hosts": "nodes", "release": VERSION, "source": FLAKE, **fields})


def host(name: str, *, backend: str | None = None, **nixos: Any) -> Instance:
    declared = NixosHost(**nixos)
    return Instance(
        name=name,
        host=HostAddress(name=name, address=f"{name}.example"),
        layout=NixProfile(profile=declared.places.profile),
        service=HostService(),
        probe=NixosProbe(current=declared.places.current, urls=declared.urls),
        nixos=declared,
        backend=backend,
        server=name if backend else None,
    )


def bare(size: int = 1, **nixos: Any) -> Fleet:
    members = tuple(host(f"node-{n}", **nixos) for n in range(1, size + 1))
    return Fleet(application="nodes", instances=members)


def sides(blue: int = 2, green: int = 2, **nixos: Any) -> Fleet:
    members = [host(f"blue-{n}", backend="blue", **nixos) for n in range(1, blue + 1)]
    members += [host(f"green-{n}", backend="green", **nixos) for n in range(1, green + 1)]
    return Fleet(application="nodes", instances=tuple(members), route=ROUTE)


def facts(name: str, **fields: Any) -> HostFacts:
    """Return what is read of a host that runs its system 1, and gets its system 2."""
    old = system(name, 1)
    return HostFacts(
        **{
            "generation": 7,
            "profile": old,
            "running": fields.get("profile", old),
            "booted": old,
            "built": system(name, 2),
            "names": SystemNames(version=VERSION, revision="abc"),
            "channels": f"/nix/store/{9:032}-user-environment",
            "channel_url": "https://channels.example/nixos-25.11",
            "channel_generation": 3,
            "channel_content": "c" * 64,
            **fields,
        }
    )


def situation(of: Fleet, **fields: Any) -> NixosSituation:
    return {name: facts(name, **fields) for name in of.names}


def state(of: Fleet, known: NixosSituation, *, servers: dict[str, Any] | None = None) -> FleetState:
    """Return the state of hosts as it is when these facts are true."""
    return FleetState(
        instances={
            name: InstanceState(release=known[name].profile, running=known[name].running) for name in of.names
        },
        traffic=Traffic(live="blue", candidate="green") if of.route else None,
        servers=dict.fromkeys(of.names, "ready") | (servers or {}) if of.route else {},
    )


def planned(
    strategy: Strategy, of: Fleet | None = None, change: SystemRelease | None = None, **fields: Any
) -> Plan:
    """Return the plan for hosts of which all have these facts."""
    of = of or bare()
    known = situation(of, **fields)
    return plan_nixos(change or release(), strategy, of, state(of, known), situation=known)


@st.composite
def situations(draw: st.DrawFn) -> tuple[SystemRelease, Strategy, Fleet, FleetState, NixosSituation]:
    """A release that these hosts may get, by a strategy that fits them."""
    of, strategy = draw(_hosts_and_strategies())
    known = {name: draw(_facts(name)) for name in of.names}
    activate = draw(st.sampled_from(["live", "boot"]))
    can_be_live = not any(fact.init_changes for fact in known.values())
    closures = NixosClosures(paths={name: fact.built for name, fact in known.items()})
    change = release(
        source=draw(st.sampled_from([FLAKE, CHANNEL, NixosChannel(), closures])),
        activate=activate if can_be_live else "boot",
        reboot=draw(st.sampled_from(["when_needed", "always"])),
    )
    if change.activate == "live" and draw(st.booleans()):
        change = change.model_copy(update={"reboot": "never"})
    return change, strategy, of, state(of, known), known


@st.composite
def _hosts_and_strategies(draw: st.DrawFn) -> tuple[Fleet, Strategy]:
    if draw(st.booleans()):
        of = bare(draw(st.integers(1, 4)))
        return of, draw(st.sampled_from([InPlace(instance=of.names[-1]), Rolling()]))
    of = sides(blue=draw(st.integers(2, 3)), green=draw(st.integers(1, 3)))
    of = of.model_copy(update={"smoke_script": draw(st.sampled_from([None, "true"]))})
    batch = len(of.side("blue")) - 1
    one = InPlace(instance=draw(st.sampled_from(of.names)))
    rolling = Rolling(batch_size=batch, max_unavailable=batch)
    return of, draw(st.sampled_from([one, rolling, BlueGreen(), Canary()]))


@st.composite
def _facts(draw: st.DrawFn, name: str) -> HostFacts:
    paths = [system(name, number) for number in (0, 1, 2)]
    parts = st.sampled_from([(), ("kernel",), ("kernel", "initrd")])
    names = st.lists(st.sampled_from(["web.service", "db.service"]), unique=True).map(tuple)
    return facts(
        name,
        generation=draw(st.integers(1, 90)),
        profile=draw(st.sampled_from(paths)),
        running=draw(st.sampled_from(paths)),
        booted=draw(st.sampled_from([*paths, None])),
        reboot_for=draw(parts),
        reboot_due_for=draw(parts),
        init_changes=draw(st.integers(0, 9)) == 0,
        closure=ClosureDifference(packages=draw(names), added_bytes=5, removed_bytes=2),
        units=UnitsAffected(stopped=draw(names), restarted=draw(names)),
        failed_units=draw(names),
    )
