"""Read the evidence that comes with a change, and judge it: one finding for each row of the checklist.

Nothing here raises for bad evidence: what is missing, unreadable or not what it should be is unknown, and
unknown is not passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from blocks.forgejo import Forgejo
from rules.environment import Environment, GateLimits
from rules.evidence.benchmarks import judge_benchmarks, parse_benchmarks
from rules.evidence.changes import judge_changelog, judge_documentation, parse_changed_files
from rules.evidence.configuration import judge_configuration
from rules.evidence.coverage import judge_coverage, parse_coverage
from rules.evidence.diagnostics import judge_diagnostics, judge_security, parse_diagnostics
from rules.evidence.flake import flake_inputs
from rules.evidence.forgejo import judge_reviews, judge_status
from rules.evidence.junit import judge_tests, parse_junit
from rules.evidence.locks import judge_flake, judge_requirements
from rules.evidence.migrations import DOWN, UP, Migration, judge_migrations
from rules.evidence.sarif import parse_sarif
from rules.evidence.sops import judge_sops
from rules.evidence.sources import Evidence
from rules.finding import Finding, Result, worst
from tasks import evidence_files as files
from tasks.evidence_files import BadEvidenceError
from tasks.evidence_locks import Pins, asked_for
from tasks.forgejo import ForgejoError, commit_status, pull_head, pull_reviews

T = TypeVar("T")
Question = Callable[[], Finding]


def read_evidence(
    evidence: Evidence, *, release: str, environment: Environment, forgejo: Forgejo | None
) -> dict[str, Finding]:
    """Return what the evidence says, by the id of the checklist's row; rows without evidence are left out.

    Args:
        evidence: where it lies.
        release: the release that is deployed, as the CHANGELOG names it.
        environment: its limits are what is asked of the evidence.
        forgejo: where reviews and checks are read; None: those rows are left out.

    `configuration-reviewed` passes when the configuration holds no clear secret and the commit is approved:
    a review is of the whole commit, whether the file was changed in it or not.
    """
    limits = environment.limits
    findings = {row: _answered(question) for row, question in _about_files(evidence, release, limits).items()}
    findings |= {
        row: _answered(question) for row, question in _about_commit(evidence, limits, forgejo).items()
    }
    if evidence.configuration:
        path = evidence.configuration
        review = findings.get("code-reviewed") or Finding.unknown("nobody is known to have reviewed it.")
        found = _answered(lambda: _configuration(path, evidence.changed_files))
        findings["configuration-reviewed"] = _both(found, review)
    return findings


def _about_files(evidence: Evidence, release: str, limits: GateLimits) -> dict[str, Question]:
    """Return a question for each row whose evidence is a file, where it is named."""
    e = evidence
    named: dict[str, tuple[object, Question]] = {
        "tests-passing": (e.tests, lambda: _tests(e.tests, limits)),
        "diagnostics-clean": (e.diagnostics, lambda: _diagnostics(e.diagnostics, limits)),
        "coverage": (e.coverage, lambda: _coverage(e.coverage or "", limits)),
        "benchmarks-met": (e.benchmarks, lambda: _benchmarks(e.benchmarks or "", e.benchmark_limits)),
        "security-reviewed": (e.security, lambda: _security(e.security or "", limits)),
        "documentation-updated": (e.changed_files, lambda: _documentation(e)),
        "changelog-updated": (
            e.changelog,
            lambda: judge_changelog(files.text(e.changelog or ""), release=release),
        ),
        "secrets-encrypted": (e.secrets, lambda: _secrets(e.secrets, limits)),
        "dependencies-updated": (e.lock, lambda: _lock(e.lock or "", e.lock_sources)),
        "migrations-prepared": (e.migrations, lambda: _migrations(e.migrations)),
    }
    return {row: question for row, (given, question) in named.items() if given}


def _about_commit(evidence: Evidence, limits: GateLimits, forgejo: Forgejo | None) -> dict[str, Question]:
    """Return a question for each row that the forge answers, where it is known what to ask."""
    commit, number = evidence.commit, evidence.pull_request
    if not forgejo or not commit:
        return {}
    questions: dict[str, Question] = {
        "ci-ready": lambda: judge_status(
            commit_status(forgejo, commit), required_contexts=limits.required_contexts, commit=commit
        )
    }
    if number:
        questions["code-reviewed"] = lambda: _review(forgejo, number, commit, limits)
    return questions


def _answered(question: Question) -> Finding:
    """Return the answer, or why there is none."""
    try:
        return question()
    except (BadEvidenceError, ForgejoError) as error:
        return Finding.unknown(str(error))
    except (ValueError, RecursionError) as error:
        # its text might quote what was read
        return Finding.unknown(f"it could not be judged: {type(error).__name__}.")


def _parsed(path: str, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(files.content(path))
    except (ValueError, RecursionError) as error:
        raise files.unreadable(path, error) from error


def _tests(paths: Iterable[str], limits: GateLimits) -> Finding:
    runs = [_parsed(path, parse_junit) for path in paths]
    return judge_tests(runs, min_passed_ratio=limits.min_passed_ratio)


def _diagnostics(paths: Iterable[str], limits: GateLimits) -> Finding:
    scans = [_parsed(path, parse_diagnostics) for path in paths]
    return judge_diagnostics(scans, max_diagnostics=limits.max_diagnostics)


def _security(path: str, limits: GateLimits) -> Finding:
    scan = _parsed(path, parse_sarif)
    return judge_security([scan], max_findings=limits.max_security_findings)


def _coverage(path: str, limits: GateLimits) -> Finding:
    return judge_coverage(_parsed(path, parse_coverage), min_coverage=limits.min_coverage)


def _benchmarks(path: str, limits: dict[str, float]) -> Finding:
    return judge_benchmarks(_parsed(path, parse_benchmarks), limits)


def _documentation(evidence: Evidence) -> Finding:
    return judge_documentation(_changed(evidence.changed_files or ""), evidence.documentation_paths)


def _changed(path: str) -> tuple[str, ...]:
    try:
        return parse_changed_files(files.text(path))
    except ValueError as error:
        raise files.unreadable(path, error) from error


def _secrets(paths: Iterable[str], limits: GateLimits) -> Finding:
    return worst(tuple(_answered(partial(_secret, path, limits)) for path in paths))


def _secret(path: str, limits: GateLimits) -> Finding:
    return worst(
        tuple(judge_sops(tree, name=path, recipients=limits.sops_recipients) for tree in files.trees(path))
    )


def _lock(path: str, sources: tuple[str, ...]) -> Finding:
    if not sources:
        return Finding.unknown("evidence.lock_sources does not say what the lock was made of.")
    if Path(path).name.endswith("flake.lock"):
        return _flake(path, sources)
    pins = Pins(path)
    asked = [row for source in sources for row in asked_for(source)]
    dependencies = [pins.dependency(requirement, optional=optional) for requirement, optional in asked]
    return judge_requirements(dependencies, pins.good)


def _flake(path: str, sources: tuple[str, ...]) -> Finding:
    inputs: set[str] = set()
    for source in sources:
        try:
            inputs |= flake_inputs(files.text(source))
        except ValueError as error:
            raise files.unreadable(source, error) from error
    return _parsed(path, lambda content: judge_flake(content, inputs))


def _migrations(paths: tuple[str, ...]) -> Finding:
    # the way back of a migration that is named as well is no migration of its own
    forward = [path for path in paths if not (path.endswith(DOWN) and _up_of(path) in paths)]
    migrations = [Migration(name=Path(p).name, text=files.text(p), down=_way_back(p)) for p in forward]
    try:
        return judge_migrations(migrations)
    except ValueError as error:
        return Finding.unknown(f"{error}.")


def _way_back(path: str) -> str | None:
    if not path.endswith(UP):
        return None
    down = path.removesuffix(UP) + DOWN
    return files.text(down) if Path(down).exists() else None


def _up_of(path: str) -> str:
    return path.removesuffix(DOWN) + UP


def _review(forgejo: Forgejo, number: int, commit: str, limits: GateLimits) -> Finding:
    head = pull_head(forgejo, number)
    if head != commit:
        return Finding.failed(
            f"pull request {number} is at commit {head[:12]}, and {commit[:12]} was built: its review is of "
            "another commit."
        )
    reviews = pull_reviews(forgejo, number)
    return judge_reviews(reviews, head=commit, required=limits.required_approvals)


def _configuration(path: str, changed_files: str | None) -> Finding:
    found = worst(tuple(judge_configuration(tree, name=path) for tree in files.trees(path)))
    if changed_files is None:
        return found
    changed = any(f"/{name}" == path or path.endswith(f"/{name}") for name in _changed(changed_files))
    words = "It is changed in this commit." if changed else "It is not among the changed files."
    return Finding(result=found.result, evidence=f"{found.evidence} {words}")


def _both(found: Finding, review: Finding) -> Finding:
    """Return one finding for a file and its review: passed only where both are."""
    if found.result is not Result.PASSED:
        return found
    return Finding(result=review.result, evidence=f"{found.evidence} Its review: {review.evidence}")
