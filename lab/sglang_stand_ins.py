"""Empty stand-ins for what the real SGLang imports at its start and never uses on a CPU.

torchvision, triton and vllm have no build for a machine without a GPU, or none that goes with the CPU build
of torch. This module is copied into SGLang's environment, where a .pth file imports it first; no file of
SGLang's is changed. Standard library only. A package that is really installed is never stood in for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

PACKAGES = frozenset({"torchvision", "triton", "vllm"})


class _Class(type):
    """The kind of a stood-in class: asked for a member, it has one."""

    def __getattr__(cls, name: str) -> Any:
        return _member(name)


class Nothing(metaclass=_Class):
    """Can be called, subclassed, indexed and used as a decorator, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take anything."""

    def __call__(self, *given: Any, **named: object) -> Any:
        """Return what was decorated, or nothing."""
        is_decorator = len(given) == 1 and callable(given[0]) and not named
        return given[0] if is_decorator else Nothing()

    def __getattr__(self, name: str) -> Any:
        return _member(name)

    def __getitem__(self, _: object) -> Any:
        return Nothing()

    def __or__(self, _: object) -> Any:
        return object  # a union of types, in an annotation

    __ror__ = __or__

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _member(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Nothing()


def _divide_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length() if number > 0 else 1


#: What is really asked for while the server starts. A driver with no member is one without a device.
_REAL: dict[str, Any] = {
    "triton.cdiv": _divide_up,
    "triton.next_power_of_2": _next_power_of_2,
    "triton.runtime.driver": object(),
}
_MODULES = frozenset({"triton.language", "triton.runtime", "triton.runtime.jit"})


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if full in _MODULES or full in sys.modules:
            return importlib.import_module(full)
        if full in _REAL:
            found = _REAL[full]
        elif name[0].isupper():
            # a class of its own for each name: some are subclassed together
            found = _Class(name, (Nothing,), {"__module__": self.__name__})
        else:
            found = Nothing()
        setattr(self, name, found)
        return found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__version__"] = "0.0.0"


# last: whoever is really there is found first
sys.meta_path.append(_Finder())
