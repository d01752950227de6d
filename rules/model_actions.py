"""What is done to a server that serves a model, beside what is done to any instance."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rules.frozen import Count, Frozen, Name, PositiveSeconds
from rules.serving import ServedBefore


class MemoryLimit(Frozen):
    """How much of a GPU's memory may be in use once the new release serves."""

    gpu: Count = Field(description="NVML index")
    most_bytes: Count
    words: str = Field(description="how it comes about")


class DrainRequests(Frozen):
    """Wait until the server has no running and no waiting requests; no new ones are sent to it."""

    action: Literal["drain_requests"] = "drain_requests"
    instance: Name
    drain_s: PositiveSeconds
    cut: bool = Field(description="go on when the time is over; else the step fails and nothing is lost")


class HotSwap(Frozen):
    """Load the release's weights into the running server: requests wait for milliseconds, none fails."""

    action: Literal["hot_swap"] = "hot_swap"
    instance: Name


class VerifyModel(Frozen):
    """Prove which model is loaded: weight version, name, architecture, and each tensor's checksum."""

    action: Literal["verify_model"] = "verify_model"
    instance: Name


class TestInference(Frozen):
    """Ask the declared prompts: properties of the answers, time to first token and speed beside before."""

    __test__ = False  # not a pytest class
    action: Literal["test_inference"] = "test_inference"
    instance: Name
    before: ServedBefore


class CheckMemory(Frozen):
    """Compare the GPUs' memory in use with what was expected."""

    action: Literal["check_memory"] = "check_memory"
    instance: Name
    limits: tuple[MemoryLimit, ...]


ModelAction = DrainRequests | HotSwap | VerifyModel | TestInference | CheckMemory
