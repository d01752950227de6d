"""Benchmarks: is each within its limit? From pytest-benchmark's JSON, or a list of name, value, limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, TypeAdapter

from rules.evidence.foreign import Foreign
from rules.finding import Finding
from rules.frozen import Frozen
from rules.words import listed

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Benchmark(Frozen):
    """One measured value and the largest one allowed; both in `unit`."""

    names: Annotated[tuple[str, ...], Field(min_length=1, description="all names that a limit may use")]
    value: _Finite
    limit: _Finite | None = None
    unit: str = ""

    @property
    def name(self) -> str:
        """The shortest of its names."""
        return self.names[0]


class _Stats(Foreign):
    mean: _Finite


class _Timed(Foreign):
    name: str
    fullname: str | None = None
    stats: _Stats


class _PytestBenchmark(Foreign):
    benchmarks: tuple[_Timed, ...]


class _Plain(Foreign):
    name: str
    value: _Finite
    limit: _Finite | None = None
    unit: str = ""


def parse_benchmarks(content: bytes) -> tuple[Benchmark, ...]:
    """Return the benchmarks of a file: mean seconds for pytest-benchmark's.

    Raises:
        ValueError: it is in neither format, or a number is none.
    """
    if content.lstrip()[:1] == b"[":
        plain = TypeAdapter(tuple[_Plain, ...]).validate_json(content)
        return tuple(Benchmark(names=(p.name,), value=p.value, limit=p.limit, unit=p.unit) for p in plain)
    timed = _PytestBenchmark.model_validate_json(content).benchmarks
    return tuple(
        Benchmark(names=(t.name, *([t.fullname] if t.fullname else [])), value=t.stats.mean, unit="s")
        for t in timed
    )


def judge_benchmarks(benchmarks: tuple[Benchmark, ...], limits: Mapping[str, float]) -> Finding:
    """Return whether each benchmark is at its limit or below it, and each limit has its benchmark.

    Args:
        benchmarks: what was measured; a limit in the file counts, the smaller of the two where both exist.
        limits: benchmark name (short or full) -> largest value, in the benchmark's unit.

    A benchmark without a limit was not judged by anyone: unknown. A limit without a benchmark means that what
    should have been measured was not: failed.
    """
    if not benchmarks and not limits:
        return Finding.unknown("no benchmark was measured.")
    named = {name for benchmark in benchmarks for name in benchmark.names}
    missing = sorted(set(limits) - named)
    judged = [(benchmark, _limit(benchmark, limits)) for benchmark in benchmarks]
    bare = [benchmark.name for benchmark, limit in judged if limit is None]
    over = [
        f"{benchmark.name} took {_amount(benchmark.value, benchmark.unit)}, at most {limit:g} allowed"
        for benchmark, limit in judged
        if limit is not None and benchmark.value > limit
    ]
    over += [f"{name} has a limit and was not measured" for name in missing]
    if over:
        return Finding.failed(f"{len(benchmarks)} benchmarks: {listed(over)}.")
    if bare:
        return Finding.unknown(f"{len(bare)} of {len(benchmarks)} benchmarks have no limit: {listed(bare)}.")
    closest = max(judged, key=lambda pair: _part(pair[0].value, pair[1]))
    return Finding.passed(
        f"{len(benchmarks)} benchmarks are within their limits; the closest is {closest[0].name} at "
        f"{_amount(closest[0].value, closest[0].unit)} of {closest[1]:g}."
    )


def _limit(benchmark: Benchmark, limits: Mapping[str, float]) -> float | None:
    given = [limits[name] for name in benchmark.names if name in limits]
    if benchmark.limit is not None:
        given.append(benchmark.limit)
    return min(given, default=None)


def _part(value: float, limit: float | None) -> float:
    return value / limit if limit else 1.0


def _amount(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()
