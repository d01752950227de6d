"""SARIF 2.1.0: levels with their defaults, suppressions, severities, and runs that failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from rules.evidence.foreign import Foreign
from rules.evidence.scan import Level, Problem, Scan

_Index = Annotated[int, Field(ge=-1)]  # -1: the standard's own "none"


class _Configuration(Foreign):
    level: Level = "warning"  # the standard's default


class _Properties(Foreign):
    severity: Annotated[float | None, Field(alias="security-severity", ge=0, le=10)] = None


class _Rule(Foreign):
    id: str
    configuration: Annotated[_Configuration, Field(alias="defaultConfiguration")] = _Configuration()
    properties: _Properties = _Properties()


class _Component(Foreign):
    name: str
    rules: tuple[_Rule, ...] = ()


class _Tool(Foreign):
    driver: _Component
    extensions: tuple[_Component, ...] = ()


class _ComponentReference(Foreign):
    index: _Index = -1


class _RuleReference(Foreign):
    id: str | None = None
    index: _Index = -1
    component: Annotated[_ComponentReference, Field(alias="toolComponent")] = _ComponentReference()


class _Suppression(Foreign):
    status: Literal["accepted", "underReview", "rejected"] = "accepted"


class _Artifact(Foreign):
    uri: str = ""


class _Region(Foreign):
    line: Annotated[int | None, Field(alias="startLine")] = None


class _Physical(Foreign):
    artifact: Annotated[_Artifact, Field(alias="artifactLocation")] = _Artifact()
    region: _Region = _Region()


class _Location(Foreign):
    physical: Annotated[_Physical, Field(alias="physicalLocation")] = _Physical()


class _Result(Foreign):
    rule_id: Annotated[str | None, Field(alias="ruleId")] = None
    rule_index: Annotated[_Index, Field(alias="ruleIndex")] = -1
    rule: _RuleReference = _RuleReference()
    kind: str = "fail"
    level: Level | None = None
    baseline: Annotated[str | None, Field(alias="baselineState")] = None
    suppressions: tuple[_Suppression, ...] | None = None
    locations: tuple[_Location, ...] = ()
    properties: _Properties = _Properties()


class _Invocation(Foreign):
    successful: Annotated[bool, Field(alias="executionSuccessful")]


class _Run(Foreign):
    tool: _Tool
    invocations: tuple[_Invocation, ...] = ()
    results: tuple[_Result, ...] | None = None  # None: the scan did not get to results


class _Sarif(Foreign):
    version: Literal["2.1.0"]
    runs: tuple[_Run, ...]


def parse_sarif(content: bytes) -> Scan:
    """Return what a SARIF file reports; see `read_sarif`.

    Raises:
        ValueError: it is no SARIF.
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("not SARIF: no object at its top")  # noqa: TRY004 - the content is wrong, not a type
    return read_sarif(data)


def read_sarif(data: Mapping[str, object]) -> Scan:
    """Return what a SARIF log reports.

    A log with no run, a run that says of itself that it failed and a run without a list of results prove
    nothing, however few results there are.

    Raises:
        ValueError: it does not follow the standard in what is read of it.
    """
    log = _Sarif.model_validate(data)
    problems = [_problem(run, r) for run in log.runs for r in run.results or () if r.baseline != "absent"]
    return Scan(
        tools=tuple(run.tool.driver.name for run in log.runs),
        problems=tuple(problems),
        unfinished=" ".join(_unfinished(log)),
    )


def _unfinished(log: _Sarif) -> list[str]:
    if not log.runs:
        return ["the SARIF log holds no run."]
    failed = [r.tool.driver.name for r in log.runs if not all(i.successful for i in r.invocations)]
    silent = [r.tool.driver.name for r in log.runs if r.results is None]
    return [f"the run of {name} failed." for name in failed] + [
        f"the run of {name} has no list of results." for name in silent
    ]


def _problem(run: _Run, result: _Result) -> Problem:
    rule = _rule(run, result)
    ratings = [result.properties.severity, rule.properties.severity if rule else None]
    name = result.rule_id or result.rule.id or (rule.id if rule else "no rule")
    return Problem(
        level=_level(result, rule),
        rule=name,
        where=_where(result),
        severity=max((rating for rating in ratings if rating is not None), default=None),
        # one that is under review, or was refused, suppresses nothing
        suppressed=bool(result.suppressions)
        and all(s.status == "accepted" for s in result.suppressions or ()),
    )


def _level(result: _Result, rule: _Rule | None) -> Level:
    if result.level is not None:
        return result.level
    if result.kind != "fail":
        return "none"
    return rule.configuration.level if rule else "warning"


def _rule(run: _Run, result: _Result) -> _Rule | None:
    """Return the rule that a result names, by index where it gives one, else by id."""
    extension, index = result.rule.component.index, max(result.rule_index, result.rule.index)
    if extension >= len(run.tool.extensions):
        raise ValueError(f"a result names tool extension {extension}, which is not there")
    component = run.tool.extensions[extension] if extension >= 0 else run.tool.driver
    if index >= 0:
        if index >= len(component.rules):
            raise ValueError(f"a result names rule {index} of {component.name}, which is not there")
        return component.rules[index]
    wanted = result.rule_id or result.rule.id or ""
    every = [rule for part in (run.tool.driver, *run.tool.extensions) for rule in part.rules]
    by_id = {rule.id: rule for rule in reversed(every)}
    # `CA1000/1` is a sub-rule of `CA1000`
    return by_id.get(wanted) or by_id.get(wanted.rpartition("/")[0])


def _where(result: _Result) -> str:
    if not result.locations:
        return "no place"
    physical = result.locations[0].physical
    line = f":{physical.region.line}" if physical.region.line else ""
    return f"{physical.artifact.uri or 'no file'}{line}"
