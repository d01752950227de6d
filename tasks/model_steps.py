"""Each action on a model's server as a Prefect task, named after what it does to which server."""

from __future__ import annotations

from typing import assert_never

from rules.change import ModelRelease
from rules.fleet import Instance
from rules.model_actions import CheckMemory, DrainRequests, HotSwap, ModelAction, TestInference, VerifyModel
from tasks import model_server, model_stage
from tasks.as_task import as_task
from tasks.deployment import OpenDeployment

_stage_model = as_task(model_stage.stage_model, "stage model", "{instance.name}: stage", retries=1)
drain_requests = as_task(
    model_server.drain_requests, "drain requests", "{instance.name}: wait for running requests"
)
hot_swap = as_task(model_server.hot_swap, "hot swap", "{instance.name}: swap hot")
verify_model = as_task(model_server.verify_model, "verify model", "{instance.name}: verify", retries=1)
test_inference = as_task(model_server.test_inference, "test inference", "{instance.name}: ask prompts")
check_memory = as_task(
    model_server.check_memory, "check memory", "{instance.name}: look at the memory", retries=1
)


def stage_model(deployment: OpenDeployment, change: ModelRelease, instance: Instance) -> None:
    """Put a model's release beside the others on a server's host.

    Raises:
        DeployError: it failed; see the task.
    """
    _stage_model(
        instance,
        change,
        serving=deployment.fleet.model_serving,
        deployment=deployment.name,
        settings=deployment.settings,
    )


def change_model(deployment: OpenDeployment, change: ModelRelease, action: ModelAction) -> None:
    """Do one action of a plan on one of a model's servers.

    Raises:
        DeployError: it failed; see each task.
    """
    instance, serving = deployment.fleet.instance(action.instance), deployment.fleet.model_serving
    match action:
        case DrainRequests():
            deployment.note(
                "drained",
                drain_requests(instance, action, serving=serving, still_wanted=deployment.prove_ours),
            )
        case HotSwap():
            hot_swap(instance, serving, change.release, settings=deployment.settings)
        case VerifyModel():
            deployment.note("model_verified", verify_model(instance, serving, change))
        case TestInference():
            answers = test_inference(instance, serving, action)
            words = "; ".join(answer.in_words for answer in answers)
            deployment.note("inference", f"{instance.name}: {words or 'no prompts are declared'}")
        case CheckMemory():
            deployment.note("memory", check_memory(instance, action))
        case unknown:
            assert_never(unknown)
