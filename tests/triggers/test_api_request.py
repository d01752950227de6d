"""A request is checked before it is sent, and each wrong field is named with its reason."""

from __future__ import annotations

import pytest

from rules.change import ApplicationRelease
from rules.checklist import Waiver
from rules.strategy import Canary, InPlace
from triggers.api import BadRequestError, deploy_request

ARTEFACT = {"artefact": "archive", "path": "/releases/2.0.0.tar.gz", "sha256": "0" * 64}
CHANGE = {"component": "application", "application": "web", "release": "2.0.0", "artefact": ARTEFACT}


def test_values_and_json_make_the_same_request():
    of_json = deploy_request({"change": CHANGE, "strategy": {"strategy": "canary"}})
    of_values = deploy_request({"change": ApplicationRelease.model_validate(CHANGE), "strategy": Canary()})
    assert of_json == of_values
    assert of_json.parameters["change"] == CHANGE
    assert of_json.parameters["strategy"]["strategy"] == "canary"


def test_only_what_differs_from_the_flows_own_defaults_is_sent_beside_change_and_strategy():
    plain = deploy_request({"change": CHANGE, "strategy": InPlace()})
    assert set(plain.parameters) == {"change", "strategy", "environment"}
    waiver = Waiver(item="coverage", by="Ada", reason="no code")
    with_more = deploy_request(
        {"change": CHANGE, "strategy": InPlace(), "waivers": [waiver], "dry_run": True}
    )
    assert with_more.parameters["waivers"] == [{"item": "coverage", "by": "Ada", "reason": "no code"}]
    assert with_more.parameters["dry_run"] is True


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"change": {**CHANGE, "artefact": None}}, "change.artefact: Input should be"),
        ({"change": {"application": "web", "release": "2.0.0"}}, "change.artefact: Field required"),
        ({"change": {"component": "sglang_model"}}, "change.model: Field required"),
        ({"change": {"component": "nothing"}}, "change.component: Input should be one of 'application'"),
        ({"change": "web"}, "change: Input should be a valid dictionary"),
        (
            {"strategy": {"strategy": "canary", "steps_percent": [150]}},
            "strategy.steps_percent.0: Input should be less than or equal to 100",
        ),
        (
            {"strategy": {"strategy": "canary", "steps_percent": [50, 10]}},
            "strategy: Value error, canary steps",
        ),
        ({"strategy": {"strategy": "big_bang"}}, "one of 'blue_green', 'canary', 'in_place', 'rolling'"),
        ({"environment": ""}, "environment: String should have at least 1 character"),
        ({"waivers": [{"item": "coverage", "by": "Ada"}]}, "waivers.0.reason: Field required"),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_field_is_named_with_its_reason_and_nothing_of_other_kinds_of_change(wrong, words):
    with pytest.raises(BadRequestError) as refused:
        deploy_request({"change": CHANGE, "strategy": {"strategy": "in_place"}, **wrong})
    assert words in str(refused.value)
    assert str(refused.value).count(";") <= 2
    assert "Nothing was sent" in str(refused.value)


def test_a_wrong_value_is_not_repeated_it_may_be_a_secret_in_the_wrong_place():
    with pytest.raises(BadRequestError) as refused:
        deploy_request({"change": {**CHANGE, "release": "top secret!"}, "strategy": {}})
    assert "change.release: String should match" in str(refused.value)
    assert "top secret" not in str(refused.value)
