"""Does a lock agree with what it was made of? For Python requirements, and for a flake's inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import Field

from rules.evidence.foreign import Foreign
from rules.finding import Finding
from rules.frozen import Frozen
from rules.words import listed


class Dependency(Frozen):
    """A dependency that a source names, and what the lock has for it.

    `pinned` are the lock's versions of it: several where they depend on markers. `satisfied` says whether
    they are what `specifier` asks for; `optional` ones may be missing from a lock made without their extra.
    """

    name: str
    specifier: str = Field(description="as the source writes it, such as `>=2,<3`; empty: any version")
    pinned: tuple[str, ...] = ()
    satisfied: bool = False
    optional: bool = False


def judge_requirements(dependencies: Sequence[Dependency], pins: Mapping[str, bool]) -> Finding:
    """Return whether each direct dependency is in the lock as its source asks for, and each pin has a hash.

    Args:
        dependencies: what the sources name.
        pins: name of everything in the lock -> whether it is pinned to one version and carries a hash.
    """
    if not pins:
        return Finding.unknown("the lock pins nothing.")
    wanted = [d for d in dependencies if d.pinned or not d.optional]
    problems = [f"{d.name} is not in the lock" for d in wanted if not d.pinned]
    problems += [
        f"{d.name} is locked at {listed(d.pinned)}, its source asks for {d.specifier}"
        for d in wanted
        if d.pinned and not d.satisfied
    ]
    problems += [
        f"{name} has no hash, or no single version" for name, good in sorted(pins.items()) if not good
    ]
    if problems:
        return Finding.failed(f"the lock does not hold: {listed(problems, shown=6)}.")
    if not wanted:
        return Finding.unknown("the lock's sources name no dependency.")
    return Finding.passed(
        f"{len(wanted)} direct dependencies are in the lock as their sources ask for; all {len(pins)} pins "
        "carry hashes."
    )


class _Locked(Foreign):
    nar_hash: str = Field(alias="narHash", min_length=1)


class _Node(Foreign):
    # a list is a path from the root: the input follows another one
    inputs: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    locked: _Locked | None = None


class _FlakeLock(Foreign):
    nodes: dict[str, _Node]
    root: str


def judge_flake(content: str | bytes, inputs: Collection[str]) -> Finding:
    """Return whether each of flake.nix's `inputs` is in its lock, and everything locked has a hash.

    Args:
        content: flake.lock.
        inputs: names that flake.nix gives its inputs.

    Raises:
        ValueError: it is no flake.lock.
    """
    lock = _FlakeLock.model_validate_json(content)
    if lock.root not in lock.nodes:
        raise ValueError("the lock's root is not among its nodes")
    locked = set(lock.nodes[lock.root].inputs)
    problems = [f"{name} is not in the lock" for name in sorted(set(inputs) - locked)]
    problems += [f"{name} is in the lock only" for name in sorted(locked - set(inputs))]
    problems += [
        f"{parent}.{name} points to a node that is not there"
        for parent, node in sorted(lock.nodes.items())
        for name, target in sorted(node.inputs.items())
        if isinstance(target, str) and target not in lock.nodes
    ]
    pinned = {name: node for name, node in lock.nodes.items() if name != lock.root}
    problems += [f"{name} has no narHash" for name, node in sorted(pinned.items()) if node.locked is None]
    if problems:
        return Finding.failed(f"flake.lock does not hold: {listed(problems, shown=6)}.")
    if not inputs:
        return Finding.unknown("flake.nix names no input.")
    return Finding.passed(
        f"{len(inputs)} inputs of flake.nix are locked; all {len(pinned)} nodes have hashes."
    )
