"""The way back as data: each undo step names an absolute state, so that it can be repeated.

An undo step is right also when the effect never happened, happened half, or was already undone.
It never says "previous": it names the recorded release, split or server state.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.content_actions import ContentUndo, RestoreReferences, UnpinContent
from rules.database_undo import DatabaseUndo, RemoveIndex, RestoreIndexNames, RestoreSnapshot, RevertMigration
from rules.fleet import FleetState
from rules.frozen import Frozen, Name, PositiveSeconds, ReleaseId
from rules.nixos_actions import DisarmGuard, DropRoots, NixosUndo, RestoreChannel, RestoreSystem
from rules.release_actions import TakeBackDeployment
from rules.traffic import AdminState, Traffic


class RestoreTraffic(Frozen):
    """Send the traffic where it went before the deployment, in one step."""

    undo: Literal["restore_traffic"] = "restore_traffic"
    traffic: Traffic

    def describe(self) -> str:
        """Return this step in words."""
        return f"all traffic back to {self.traffic.live}"


class RemoveRehearsal(Frozen):
    """Remove the rehearsal's own route from the balancer and from its file; nobody's traffic follows it."""

    undo: Literal["remove_rehearsal"] = "remove_rehearsal"

    def describe(self) -> str:
        """Return this step in words."""
        return "no rehearsal route left in the balancer"


class RestoreServer(Frozen):
    """Bring an instance's balancer state back; `ready` only once it answers its probe, if it did before."""

    undo: Literal["restore_server"] = "restore_server"
    instance: Name
    admin: AdminState
    drain_s: float = 30.0
    answered: bool = Field(
        default=True, description="before: one that did not answer comes back as it was, unprobed"
    )

    def describe(self) -> str:
        """Return this step in words."""
        return f"{self.instance}: balancer state {self.admin}"


class RestoreRelease(Frozen):
    """Point an instance to its recorded release and have exactly that running; None: nothing runs."""

    undo: Literal["restore_release"] = "restore_release"
    instance: Name
    release: str | None
    running: str | None

    def describe(self) -> str:
        """Return this step in words."""
        link = f"link to {self.release}" if self.release else "no link"
        return f"{self.instance}: {link}, {self.running or 'nothing'} running"


class RestoreModel(Frozen):
    """Point a model server to its recorded release and have exactly that loaded; None: nothing runs.

    A server that was swapped hot is swapped back hot, as long as it lives: nobody waits for a start.
    """

    undo: Literal["restore_model"] = "restore_model"
    instance: Name
    release: str | None
    running: str | None
    hot: bool = Field(default=False, description="it was swapped hot: first try to swap it back so")

    def describe(self) -> str:
        """Return this step in words."""
        link = f"link to {self.release}" if self.release else "no link"
        return f"{self.instance}: {link}, model {self.running or 'none'} loaded"


class RestoreNode(Frozen):
    """Have the recorded release pointed to and a node of it in the cluster that takes work; None: no node.

    A node that may have been drained takes no work any more, and Ray does not say so: one that still has
    the recorded id is drained and started again.
    """

    undo: Literal["restore_node"] = "restore_node"
    instance: Name
    release: str | None
    running: str | None
    node_id: str | None = Field(description="the node's id before; None: there was none")
    drain_s: PositiveSeconds = Field(default=300.0, description="running tasks are waited for this long")

    def describe(self) -> str:
        """Return this step in words."""
        link = f"link to {self.release}" if self.release else "no link"
        return f"{self.instance}: {link}, {f'node of {self.running}' if self.running else 'no node'}"


class RemoveRelease(Frozen):
    """Remove a release that this deployment staged; refused while the instance points to it."""

    undo: Literal["remove_release"] = "remove_release"
    instance: Name
    release: ReleaseId

    def describe(self) -> str:
        """Return this step in words."""
        return f"{self.instance}: remove staged {self.release}"


#: The undo steps that bring one instance back to what it had and ran.
InstanceUndo = RestoreRelease | RestoreModel | RestoreNode | RestoreSystem
FleetUndo = RestoreTraffic | RemoveRehearsal | RestoreServer | InstanceUndo | RemoveRelease | NixosUndo
UndoStep = FleetUndo | DatabaseUndo | ContentUndo | TakeBackDeployment
#: The same, parsed by its `undo` field.
AnyUndoStep = Annotated[UndoStep, Field(discriminator="undo")]


def undone(state: FleetState, step: UndoStep) -> FleetState:
    """Return the fleet's state after `step`: the meaning of each undo step, without the effect.

    What concerns a database or content leaves it as it is: see `database_undone`, `content_undone`. A
    component of a release is taken back by its own deployment.
    """
    match step:
        case RestoreTraffic():
            return state.model_copy(update={"traffic": step.traffic})
        case RemoveRehearsal() | RestoreChannel() | DisarmGuard() | DropRoots():
            return state
        case RestoreServer():
            return state.model_copy(update={"servers": {**state.servers, step.instance: step.admin}})
        case RestoreRelease() | RestoreModel() | RestoreNode() | RestoreSystem():
            change: dict[str, object] = {"release": step.release, "running": step.running}
        case RemoveRelease():
            kept = tuple(r for r in state.instances[step.instance].releases if r != step.release)
            change = {"releases": kept}
        case RevertMigration() | RestoreSnapshot() | RemoveIndex() | RestoreIndexNames():
            return state
        case UnpinContent() | RestoreReferences() | TakeBackDeployment():
            return state
    instance = state.instances[step.instance].model_copy(update=change)
    return state.model_copy(update={"instances": {**state.instances, step.instance: instance}})
