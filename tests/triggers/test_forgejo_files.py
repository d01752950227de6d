"""The workflows' files: what linters say of them, and that this project's own runs .ci/run of the commit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.triggers.acting import Repository, tool

_PROJECT = Path(__file__).parents[2]
DEPLOY = _PROJECT / "triggers/forgejo/.forgejo/workflows/deploy.yml"
CI = _PROJECT / ".forgejo/workflows/ci.yml"
each_workflow = pytest.mark.parametrize("path", [DEPLOY, CI], ids=["deploy", "ci"])


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Return each step of each job."""
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        yield from job["steps"]


def complaints(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr if done.returncode else ""


@each_workflow
def test_actionlint_has_no_complaint(path, tmp_path):
    labels = tmp_path / "actionlint.yaml"
    labels.write_text("self-hosted-runner: {labels: [nixos, debian]}\n")
    assert not complaints(tool("actionlint"), "-config-file", str(labels), str(path))


@each_workflow
def test_it_is_as_the_schema_of_workflows_wants_it(path):
    schema = ("--builtin-schema", "vendor.github-workflows")
    assert not complaints(tool("check-jsonschema"), *schema, str(path))


@each_workflow
def test_no_value_becomes_part_of_a_shells_text(path):
    assert [step["name"] for step in steps(path) if "${{" in step.get("run", "")] == []


@each_workflow
def test_it_uses_nobodys_actions_and_may_only_read(path):
    assert [step["name"] for step in steps(path) if "uses" in step] == []
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_the_secret_is_given_only_to_the_steps_that_speak_with_prefect():
    with_secret = {step["id"] for step in steps(DEPLOY) if "PREFECT_API_AUTH_STRING" in step.get("env", {})}
    assert with_secret == {"ask", "start", "watch", "abort", "roll-back", "backups"}
    (job,) = yaml.safe_load(DEPLOY.read_text())["jobs"].values()
    assert "secrets." not in str(job["env"])


def test_inputs_of_people_and_of_other_workflows_are_the_same():
    # YAML 1.1 reads `on` as true
    events = yaml.safe_load(DEPLOY.read_text())[True]
    assert list(events["workflow_dispatch"]["inputs"]) == list(events["workflow_call"]["inputs"])


@pytest.mark.parametrize(("exit_code", "result"), [(0, "Success"), (3, "Failure")])
def test_this_projects_own_workflow_is_as_green_as_its_ci_run(tmp_path, exit_code, result):
    repository = Repository(tmp_path / "forge")
    run, workflow = repository.directory / ".ci/run", repository.directory / ".forgejo/workflows/ci.yml"
    for path in (run, workflow):
        path.parent.mkdir(parents=True)
    workflow.write_bytes(CI.read_bytes())
    run.write_text(f"#!/bin/sh\necho it ran with CI=$CI\nexit {exit_code}\n")
    run.chmod(0o755)
    repository.commit()
    run.write_text("#!/bin/sh\necho not committed\nexit 7\n")
    ran = repository.run("push", "ci.yml")

    assert "Linters and all tests" in ran.steps(result)
    assert ran.succeeded == (exit_code == 0)
    assert "it ran with CI=true" in ran.log
    assert "not committed" not in ran.log
