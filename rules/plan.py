"""What will be done, step by step, each with its way back: data that is shown, then walked.

The same plan is printed by a dry run and executed by a deployment, so what was shown is what happens.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.change import FleetChange
from rules.content_actions import ContentAction, UnpinOld, content_applied
from rules.database import DatabaseState
from rules.database_plan import DatabaseAction, DropOldIndex, database_applied
from rules.errors import InvalidRequestError
from rules.fleet import FleetState
from rules.frozen import BasisPoints, Count, Frozen, Name, PositiveSeconds, Seconds
from rules.ipfs import ContentState
from rules.model_actions import HotSwap, ModelAction
from rules.nixos_actions import ActivateSystem, NixosAction, RebootHost, ReleaseRoots, SwitchSystem
from rules.ray_actions import RayAction, StopService
from rules.release import Deployed, Release
from rules.release_actions import DeployComponent
from rules.strategy import BlueGreen, Canary, CanaryLimits, InPlace, Rolling, Watching
from rules.traffic import ProxyName, Traffic
from rules.undo import AnyUndoStep


class StageRelease(Frozen):
    """Put the release beside the others on the instance's host: checksum and disk space proven."""

    action: Literal["stage_release"] = "stage_release"
    instance: Name


class SwitchRelease(Frozen):
    """Point the instance to the release, atomically."""

    action: Literal["switch_release"] = "switch_release"
    instance: Name


class RestartService(Frozen):
    """Restart the instance's service."""

    action: Literal["restart_service"] = "restart_service"
    instance: Name


class ProbeInstance(Frozen):
    """Wait until the instance is ready and says that it runs the release."""

    action: Literal["probe_instance"] = "probe_instance"
    instance: Name


class TestInstance(Frozen):
    """Run the application's smoke tests against the instance, before it gets traffic."""

    __test__ = False  # not a pytest class
    action: Literal["test_instance"] = "test_instance"
    instance: Name


class SetTraffic(Frozen):
    """Change the route's split, in one atomic step of the balancer."""

    action: Literal["set_traffic"] = "set_traffic"
    traffic: Traffic


class RehearseSwitch(Frozen):
    """Set each of `splits` in turn on a route that no frontend uses, read each back, remove that route.

    It proves that the balancer takes, keeps and shows the switch and the switch back, before users depend
    on either. No request follows that route, so nobody can notice.
    """

    action: Literal["rehearse_switch"] = "rehearse_switch"
    splits: Annotated[tuple[Traffic, ...], Field(min_length=2)]


class DrainServer(Frozen):
    """Send the instance no new requests and wait for the open ones."""

    action: Literal["drain_server"] = "drain_server"
    instance: Name
    drain_s: PositiveSeconds


class RejoinServer(Frozen):
    """Give the instance traffic again, once it is seen up."""

    action: Literal["rejoin_server"] = "rejoin_server"
    instance: Name


class WatchSide(Frozen):
    """Watch a side's answers until they pass; `stable` is the side it is compared with, if any."""

    action: Literal["watch_side"] = "watch_side"
    side: ProxyName
    stable: ProxyName | None
    share: BasisPoints
    watch: Watching
    bake_s: Seconds = 0.0


class ObserveBatch(Frozen):
    """Watch a batch just rejoined beside the rest of its side for a while; a FAIL verdict stops it all."""

    action: Literal["observe_batch"] = "observe_batch"
    instances: tuple[Name, ...]
    observe_s: Seconds
    limits: CanaryLimits


FleetAction = (
    StageRelease
    | SwitchRelease
    | RestartService
    | ProbeInstance
    | TestInstance
    | SetTraffic
    | RehearseSwitch
    | DrainServer
    | RejoinServer
    | WatchSide
    | ObserveBatch
)
Action = (
    FleetAction | ModelAction | RayAction | NixosAction | DatabaseAction | ContentAction | DeployComponent
)
#: What is done once the undo of a deployment is disarmed.
Finish = DropOldIndex | ReleaseRoots | UnpinOld


class Step(Frozen):
    """One action and its way back. Steps without `undo` only read."""

    number: Count
    title: str
    action: Annotated[Action, Field(discriminator="action")]
    undo: AnyUndoStep | None = None
    interrupts: str | None = Field(default=None, description="what users notice of it, if anything")


class Plan(Frozen):
    """A rollout: the state it starts from, its steps, and the state it promises."""

    change: Deployed
    strategy: Annotated[InPlace | BlueGreen | Canary | Rolling, Field(discriminator="strategy")]
    before: FleetState = Field(description="of the application that is changed, or whose users are watched")
    database: DatabaseState | None = Field(default=None, description="the same of the database, if any")
    steps: tuple[Step, ...]
    content: ContentState | None = Field(default=None, description="the same of IPFS content, if any")
    finish: tuple[Annotated[Finish, Field(discriminator="action")], ...] = Field(
        default=(), description="done once its undo is disarmed: nothing needs what is removed any more"
    )
    notes: tuple[str, ...] = Field(default=(), description="what people should know before they approve it")

    @property
    def how(self) -> str:
        """How it is rolled out, in a word."""
        return "in_order" if isinstance(self.change, Release) else self.strategy.strategy

    @property
    def after(self) -> FleetState:
        """The state the fleet is in when every step has been done."""
        state = self.before
        for step in self.steps:
            state = applied(state, step.action, self.change)
        return state

    @property
    def database_before(self) -> DatabaseState:
        """The database's state before the first step.

        Raises:
            InvalidRequestError: this plan changes no database.
        """
        if self.database is None:
            raise InvalidRequestError(f"a plan of {self.change.target} records no database")
        return self.database

    @property
    def database_after(self) -> DatabaseState:
        """The state the database is in when every step has been done.

        Raises:
            InvalidRequestError: this plan changes no database.
        """
        state = self.database_before
        for step in self.steps:
            if isinstance(step.action, DatabaseAction):
                state = database_applied(state, step.action)
        return state

    @property
    def content_before(self) -> ContentState:
        """The content's state before the first step.

        Raises:
            InvalidRequestError: this plan changes no content.
        """
        if self.content is None:
            raise InvalidRequestError(f"a plan of {self.change.target} records no content")
        return self.content

    @property
    def content_after(self) -> ContentState:
        """The state the content is in when every step has been done.

        Raises:
            InvalidRequestError: this plan changes no content.
        """
        state = self.content_before
        for step in self.steps:
            if isinstance(step.action, ContentAction):
                state = content_applied(state, step.action)
        return state

    @property
    def touched(self) -> set[str]:
        """The instances that a step changes."""
        names = (getattr(step.action, "instance", None) for step in self.steps)
        return {name for name in names if name is not None}

    @property
    def interruptions(self) -> tuple[str, ...]:
        """What users will notice, in words; empty when nothing."""
        return tuple(step.interrupts for step in self.steps if step.interrupts)


def applied(state: FleetState, action: Action, change: Deployed) -> FleetState:
    """Return the fleet's state after `action`: the meaning of each action, without the effect."""
    match action:
        case SetTraffic():
            return state.model_copy(update={"traffic": action.traffic})
        case DrainServer():
            return state.model_copy(update={"servers": {**state.servers, action.instance: "maint"}})
        case RejoinServer():
            return state.model_copy(update={"servers": {**state.servers, action.instance: "ready"}})
        case StageRelease() | SwitchRelease() | RestartService() | HotSwap() | StopService():
            if not isinstance(change, FleetChange):
                raise InvalidRequestError(f"{action.action} is no step of a {change.component}")
            return _instance_applied(state, action, change)
        case ActivateSystem() | SwitchSystem() | RebootHost():
            return _with_instance(state, action.instance, _system_applied(action))
        # it only looks, or concerns what is no fleet: see database_applied, content_applied; a release's
        # component has a plan of its own
        case _:
            return state


def _instance_applied(
    state: FleetState,
    action: StageRelease | SwitchRelease | RestartService | HotSwap | StopService,
    change: FleetChange,
) -> FleetState:
    instance = state.instances[action.instance]
    match action:
        case StageRelease():
            staged = {change.release} if change.pointer == change.release else set()
            update: dict[str, object] = {"releases": tuple(sorted({*instance.releases, *staged}))}
        case SwitchRelease():
            update = {"release": change.pointer}
        case RestartService() | HotSwap():
            update = {"running": change.release}
        case StopService():
            update = {"running": None}
    return _with_instance(state, action.instance, update)


def _system_applied(action: ActivateSystem | SwitchSystem | RebootHost) -> dict[str, object]:
    match action:
        case ActivateSystem() | RebootHost():
            return {"running": action.path}
        case SwitchSystem(mode="boot"):
            return {"release": action.path}
        case SwitchSystem():
            return {"release": action.path, "running": action.path}


def _with_instance(state: FleetState, name: str, update: dict[str, object]) -> FleetState:
    instances = {**state.instances, name: state.instances[name].model_copy(update=update)}
    return state.model_copy(update={"instances": instances})
