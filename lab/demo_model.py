"""The demo's changes of a model: what they are, what they end in, and what its users saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console

from lab.load import Row
from lab.model import ANSWERS, make_model
from lab.sglang import LabSglang
from rules.change import ModelRelease
from rules.strategy import InPlace

#: Its only server: a hot swap interrupts nobody there either.
ALONE = InPlace(instance="blue-1")
PROMPTS_PER_S = 20.0


@dataclasses.dataclass(frozen=True)
class ModelScene:
    """One release of the model, and what it is to end in."""

    title: str
    release: str
    ends: str
    is_good: bool = True

    def change(self, model: LabSglang) -> ModelRelease:
        """Make the model and return the change that swaps it into the running server."""
        answers = ANSWERS if self.is_good else {}
        directory = make_model(model.model_directory(self.release), seed=len(self.title), answers=answers)
        return model.change(self.release, directory).model_copy(update={"way": "hot_swap"})


MODEL_SCENES = (
    ModelScene("A model, swapped into the running server", "m2", "promoted"),
    ModelScene("A model that loads, and answers wrongly", "m3", "rolled_back", is_good=False),
)


def show_model(rows: Sequence[Row], console: Console) -> None:
    """Print what the model's users saw of all of it."""
    failed = sum(row["failed"] for row in rows)
    slowest = max((row["latency_s"] for row in rows), default=0.0)
    console.print(
        f"The model's users: {len(rows):,} prompts, {failed} failed, longest {1000 * slowest:.0f} ms.",
        soft_wrap=True,
    )
