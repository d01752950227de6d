"""A request from a file is what the run form would send, and what is wrong in it is named."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from rules.strategy import Canary
from triggers.api_errors import BadRequestError
from triggers.cli_request import read_request

REQUEST = {
    "change": {
        "component": "application",
        "application": "web",
        "release": "2.0.0",
        "artefact": {"path": "/srv/web-2.0.0.tar.gz", "sha256": "a" * 64},
    },
    "strategy": {"strategy": "canary", "steps_percent": [50, 100]},
    "waivers": [{"item": "coverage", "by": "Ada", "reason": "a prototype"}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(yaml.safe_dump(REQUEST))
    return path


def test_yaml_json_and_standard_input_say_the_same(file, tmp_path, monkeypatch):
    as_json = tmp_path / "web.json"
    as_json.write_text(json.dumps(REQUEST))
    monkeypatch.setattr(sys, "stdin", io.StringIO(file.read_text()))
    read = read_request(str(file))
    assert read == read_request(str(as_json)) == read_request("-")
    assert read.flow == "deploy/deploy"
    assert read.what == "web 2.0.0 to development by canary"
    assert read.parameters["change"]["release"] == "2.0.0"
    assert Canary.model_validate(read.parameters["strategy"]) == Canary(steps_percent=(50, 100))


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("change.release=2.0.1", ("change", "release"), "2.0.1"),
        ('change.release="3.0"', ("change", "release"), "3.0"),
        ("environment=production", ("environment",), "production"),
        ("strategy.steps_percent=[10, 100]", ("strategy", "steps_percent"), [10, 100]),
        ("strategy.watch.tick_s=0.5", ("strategy", "watch", "tick_s"), 0.5),
        ("evidence.coverage=/build/a=b.xml", ("evidence", "coverage"), "/build/a=b.xml"),
        ("waivers.0.reason=because we can", ("waivers", 0, "reason"), "because we can"),
    ],
)
def test_a_value_set_beside_the_file_replaces_it(file, setting, path, value):
    found = read_request(str(file), [setting]).parameters
    for part in path:
        found = found[part]
    assert found == value


def test_a_release_of_several_components_goes_to_its_own_flow(tmp_path):
    component = {"name": "web", **{key: REQUEST[key] for key in ("change", "strategy", "waivers")}}
    request = {"change": {"component": "release", "name": "emily", "release": "7", "components": [component]}}
    path = tmp_path / "emily.yaml"
    path.write_text(yaml.safe_dump(request))
    read = read_request(str(path))
    assert (read.flow, read.what) == ("release/release", "release emily 7 to development: web")
    with pytest.raises(BadRequestError, match=r"no request for a release: strategy"):
        read_request(str(path), ["strategy.strategy=canary"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("change.release=2.0", "change.release.*string.*put it in quotes"),
        ("change.release", "is not PATH=VALUE"),
        ("=2", "is not PATH=VALUE"),
        ("waivers.7.reason=x", "no place '7'"),
        ("change.release.major=2", "no place 'major'"),
        ("strategy=[", "no YAML value"),
        ("strategy.steps_percent=[150]", "strategy.steps_percent"),
        ("dry_run=true", "sovereign plan"),
        ("chnage=1", "chnage"),
        ("change.artefact.sha256=abc", "change.artefact.sha256"),
    ],
)
def test_a_wrong_value_is_named(file, setting, words):
    with pytest.raises(BadRequestError, match=words):
        read_request(str(file), [setting])


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "has no fields"), ("- a", "has no fields"), ("a: [", "neither YAML nor JSON"), ("{}", "change")],
)
def test_a_file_that_is_no_request_is_refused(tmp_path, text, words):
    path = tmp_path / "web.yaml"
    path.write_text(text)
    with pytest.raises(BadRequestError, match=words):
        read_request(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadRequestError, match=r"nowhere\.yaml cannot be read"):
        read_request(str(tmp_path / "nowhere.yaml"))
