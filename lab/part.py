"""A part of the lab: started and stopped, or used by `with`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Part(ABC):
    """Something that runs between `start()` and `stop()`; stopping what does not run is fine."""

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it can be used."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and wait; nothing of it is left running."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
