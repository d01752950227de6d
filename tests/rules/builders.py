"""Fleets, states and changes for the tests of the rules."""

from __future__ import annotations

from hypothesis import strategies as st

from rules.change import ApplicationRelease, ReleaseArchive
from rules.fleet import CommandService, Fleet, FleetState, Instance, InstanceState, Probe, ReleaseDirectory
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.traffic import HaproxyAddress, Route, Traffic

OLD, NEW = "1.0", "2.0"
CHANGE = ApplicationRelease(
    application="web",
    release=NEW,
    artefact=ReleaseArchive(path="/srv/web-2.0.tar.gz", sha256="a" * 64),
)
ROUTE = Route(
    balancer=HaproxyAddress(socket="/run/haproxy.sock", route_map="/etc/haproxy/routes.map"), key="web"
)


def instance(name: str, *, backend: str | None = None) -> Instance:
    return Instance(
        name=name,
        layout=ReleaseDirectory(root=f"/srv/{name}"),
        service=CommandService(start=("start", name), stop=("stop", name), status=("status", name)),
        probe=Probe(url=f"http://127.0.0.1/{name}"),
        backend=backend,
        server=name if backend else None,
    )


def fleet(blue: int = 2, green: int = 2) -> Fleet:
    members = [instance(f"blue-{n}", backend="blue") for n in range(1, blue + 1)]
    members += [instance(f"green-{n}", backend="green") for n in range(1, green + 1)]
    return Fleet(application="web", instances=tuple(members), route=ROUTE)


def bare_fleet(size: int = 1) -> Fleet:
    return Fleet(application="web", instances=tuple(instance(f"node-{n}") for n in range(1, size + 1)))


def state(of: Fleet, *, release: str = OLD, live: str = "blue") -> FleetState:
    one = InstanceState(release=release, running=release, releases=(release,))
    candidate = next((side for side in of.sides if side != live), live)
    return FleetState(
        instances=dict.fromkeys(of.names, one),
        traffic=Traffic(live=live, candidate=candidate) if of.route else None,
        servers=dict.fromkeys(of.names, "ready") if of.route else {},
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[Fleet, FleetState, InPlace | BlueGreen | Canary | Rolling]:
    """A fleet, a state it may be in, and a strategy that fits both."""
    members = fleet(blue=draw(st.integers(2, 4)), green=draw(st.integers(1, 4)))
    live = draw(st.sampled_from(["blue"]))
    before = state(members, live=live)
    instances = {}
    for name in members.names:
        is_live = name.startswith(live)
        has_new = draw(st.booleans())
        link = draw(st.sampled_from([OLD, None])) if not is_live else OLD
        running = OLD if is_live else draw(st.sampled_from([link, None]))
        releases = tuple(sorted({*([OLD] if link else []), *([NEW] if has_new else [])}))
        instances[name] = InstanceState(release=link, running=running, releases=releases)
    before = before.model_copy(update={"instances": instances})
    batch = draw(st.integers(1, len(members.side(live)) - 1))
    strategy = draw(
        st.sampled_from(
            [
                InPlace(instance=draw(st.sampled_from(members.names))),
                BlueGreen(),
                Canary(steps_percent=draw(st.sampled_from([(10, 25, 50, 100), (100,), (1, 100)]))),
                Rolling(batch_size=batch, max_unavailable=batch),
            ]
        )
    )
    return members, before, strategy
