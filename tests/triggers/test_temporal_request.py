"""What a workflow's input means: a request on file, and what the input has instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triggers.api_errors import BadRequestError
from triggers.temporal_request import answered_by, asked_for, request_for

CHANGE = {
    "component": "application",
    "application": "web",
    "release": "2.0.0",
    "artefact": {"path": "/srv/web-2.0.0.tar", "sha256": "0" * 64},
}
ON_FILE = {"change": CHANGE, "strategy": {"strategy": "rolling"}}


def on_file(directory: Path, content: Any, name: str = "production") -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / f"{name}.yaml").write_text(text)
    return directory


def test_the_guides_input_means_the_request_of_that_name_in_the_environment_of_that_name(
    tmp_path: Path,
) -> None:
    request = request_for(asked_for({"deployment": "production"}), on_file(tmp_path, ON_FILE))

    assert request.flow == "deploy/deploy"
    assert request.parameters["environment"] == "production"
    assert request.parameters["change"]["release"] == "2.0.0"
    assert request.parameters["strategy"]["strategy"] == "rolling"


def test_a_request_may_name_another_environment(tmp_path: Path) -> None:
    directory = on_file(tmp_path, {**ON_FILE, "environment": "eu-production"})
    request = request_for(asked_for({"deployment": "production"}), directory)
    assert request.parameters["environment"] == "eu-production"


def test_what_the_input_says_replaces_what_is_on_file(tmp_path: Path) -> None:
    directory = on_file(tmp_path, ON_FILE)
    sent = {"deployment": "production", "strategy": {"strategy": "in_place", "instance": "blue-1"}}
    request = request_for(asked_for({**sent, "environment": "staging", "dry_run": True}), directory)

    assert request.parameters["strategy"] == {"strategy": "in_place", "instance": "blue-1"}
    assert request.parameters["environment"] == "staging"
    assert request.parameters["dry_run"] is True
    assert request.parameters["change"]["release"] == "2.0.0"


@pytest.mark.parametrize("has_directory", [True, False])
def test_an_input_that_says_all_needs_no_file(tmp_path: Path, *, has_directory: bool) -> None:
    asked = asked_for({"deployment": "production", **ON_FILE})
    request = request_for(asked, tmp_path if has_directory else None)
    assert request.parameters["environment"] == "production"


def test_a_request_of_several_components_is_a_release(tmp_path: Path) -> None:
    components = [{"name": "web", "change": CHANGE, "strategy": {"strategy": "rolling"}}]
    change = {"name": "emily", "release": "7", "components": components}
    request = request_for(asked_for({"deployment": "production"}), on_file(tmp_path, {"change": change}))

    assert request.flow == "release/release"
    assert request.parameters["environment"] == "production"
    assert request.parameters["change"]["components"][0]["change"]["release"] == "2.0.0"
    assert "strategy" not in request.parameters


def test_a_release_that_makes_no_sense_is_refused_with_its_reason(tmp_path: Path) -> None:
    change = {"name": "emily", "release": "7", "components": []}
    with pytest.raises(BadRequestError, match=r"no request for a release: change\.components"):
        request_for(asked_for({"deployment": "production"}), on_file(tmp_path, {"change": change}))


def test_the_request_on_our_page_is_one(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "temporal.md"
    example = page.read_text().partition("```yaml\n")[2].partition("```")[0]
    request = request_for(asked_for({"deployment": "production"}), on_file(tmp_path, example))
    assert request.parameters["change"]["release"] == "2.0.0"

    with pytest.raises(BadRequestError, match=r"change\.release: Input should be a valid string"):
        request_for(
            asked_for({"deployment": "production"}), on_file(tmp_path, example.replace('"2.0.0"', "2.0"))
        )


def test_a_missing_request_is_refused_and_those_that_are_there_are_named(tmp_path: Path) -> None:
    directory = on_file(tmp_path, ON_FILE, name="staging")
    with pytest.raises(BadRequestError, match=r"no request 'production'.*Nothing was started.*: staging\."):
        request_for(asked_for({"deployment": "production"}), directory)


def test_a_worker_without_requests_says_how_to_give_it_some() -> None:
    with pytest.raises(BadRequestError, match="--requests DIR"):
        request_for(asked_for({"deployment": "production"}), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("a: [", "cannot be read", id="no YAML"),
        pytest.param("[]", "is no request", id="a list"),
        pytest.param({**ON_FILE, "stratgy": {}}, "is no request", id="a typo"),
        pytest.param({"change": CHANGE}, "strategy: Field required", id="no strategy"),
        pytest.param(
            {**ON_FILE, "strategy": {"strategy": "canary", "steps_percent": [150]}},
            "steps_percent",
            id="150 %",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_its_reason(
    tmp_path: Path, content: Any, words: str
) -> None:
    with pytest.raises(BadRequestError, match=words):
        request_for(asked_for({"deployment": "production"}), on_file(tmp_path, content))


@pytest.mark.parametrize("name", ["../secrets/production", "Production", "", "a/b", None, 7])
def test_no_input_reaches_a_file_outside_the_directory(name: Any) -> None:
    with pytest.raises(BadRequestError, match="deployment"):
        asked_for({"deployment": name})


@pytest.mark.parametrize("sent", [{}, {"approved": True}, {"approved": True, "by": "A"}, "yes", None])
def test_an_answer_names_its_person_and_says_yes_or_no(sent: Any) -> None:
    with pytest.raises(BadRequestError, match="no answer to an approval"):
        answered_by(sent)
