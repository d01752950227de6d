"""Where the evidence for a change lies: files on the worker's host, and names in the forge."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rules.frozen import AbsolutePath, Frozen

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]


class Evidence(Frozen):
    """What a pipeline hands over with a change. What is missing is unknown, and unknown is not passed."""

    commit: Commit | None = Field(default=None, description="full id of the commit that was built")
    pull_request: Annotated[int, Field(ge=1)] | None = Field(default=None, description="its number")
    tests: tuple[AbsolutePath, ...] = Field(default=(), description="JUnit XML files")
    diagnostics: tuple[AbsolutePath, ...] = Field(
        default=(), description="SARIF, or the JSON of ruff or pyright"
    )
    coverage: AbsolutePath | None = Field(default=None, description="Cobertura XML or coverage.py's JSON")
    benchmarks: AbsolutePath | None = Field(
        default=None, description="pytest-benchmark's JSON, or a list of {name, value, limit}"
    )
    benchmark_limits: dict[str, float] = Field(
        default={}, description="benchmark name -> largest mean in seconds, for pytest-benchmark's JSON"
    )
    security: AbsolutePath | None = Field(default=None, description="a scanner's SARIF")
    changed_files: AbsolutePath | None = Field(
        default=None, description="one path a line, as `git diff --name-only` prints them"
    )
    changelog: AbsolutePath | None = Field(default=None, description="the CHANGELOG as it is in the commit")
    documentation_paths: tuple[str, ...] = Field(
        default=("README*", "docs/*"), description="patterns of paths that are documentation"
    )
    secrets: tuple[AbsolutePath, ...] = Field(
        default=(), description="files that must be encrypted with sops: YAML, JSON, dotenv or INI"
    )
    lock: AbsolutePath | None = Field(default=None, description="requirements.lock, or flake.lock")
    lock_sources: tuple[AbsolutePath, ...] = Field(
        default=(), description="pyproject.toml or requirements files, or flake.nix, that the lock is made of"
    )
    migrations: tuple[AbsolutePath, ...] = Field(
        default=(), description="migration files; each needs its way back beside it or in it"
    )
    configuration: AbsolutePath | None = Field(
        default=None, description="the configuration that the release starts with: TOML, YAML, JSON or dotenv"
    )
