"""What a release of several components does, and how each is taken back: a deployment of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import Frozen, Name

#: A deployment's id: the name of its journal, of its artifacts, and of what persons ask of it.
DeploymentId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,199}$")]


class DeployComponent(Frozen):
    """Deploy one component by the whole way of a deployment, under the id that is set for it here."""

    action: Literal["deploy_component"] = "deploy_component"
    component: Name
    deployment: DeploymentId


class TakeBackDeployment(Frozen):
    """Take the deployment of one component back; right also where it never began or has ended already."""

    undo: Literal["take_back_deployment"] = "take_back_deployment"
    component: Name
    deployment: DeploymentId

    def describe(self) -> str:
        """Return this step in words."""
        return f"{self.component}: take {self.deployment} back"
