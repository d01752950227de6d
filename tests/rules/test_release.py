"""What may be released together, and in which order that is done."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.change import ModelDirectory, ModelRelease, RayRelease, ReleaseArchive
from rules.release import Component, Release, faults, ordered
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from tests.rules.releases import SHA, application, component, index, schema, whole

NODES = RayRelease(cluster="gpu", release="2.0", artefact=ReleaseArchive(path="/srv/n.tar.gz", sha256=SHA))
MODEL = ModelRelease(model="emily", release="m2", artefact=ModelDirectory(path="/srv/m2", sha256=SHA))


def names(components: tuple[Component, ...]) -> list[str]:
    return [one.name for one in components]


# --- order -----------------------------------------------------------------------------------------


def test_the_declared_order_is_kept_where_nothing_speaks_against_it():
    parts = (
        component("model", MODEL),
        component("web", application()),
        component("other", application("other")),
    )
    assert names(whole(*parts).now) == ["model", "web", "other"]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_each_component_comes_after_those_it_names_however_they_are_declared(order):
    parts = whole().components
    shuffled = tuple(parts[number] for number in order)
    assert names(whole(*shuffled).now) == ["schema", "index", "web"]


@given(st.data())
def test_an_order_is_found_for_every_release_without_a_circle(data):
    size = data.draw(st.integers(1, 7))
    parts = [
        component(f"c{n}", application(f"c{n}"), *data.draw(st.sets(st.sampled_from(earlier))))
        if (earlier := [f"c{m}" for m in range(n)])
        else component(f"c{n}", application(f"c{n}"))
        for n in range(size)
    ]
    found = ordered(data.draw(st.permutations(parts)))
    assert len(found) == size
    placed: set[str] = set()
    for one in found:
        assert placed.issuperset(one.after)
        placed.add(one.name)


def test_what_waits_for_the_bake_is_no_step_of_it():
    contract = component("contract", schema("0003", phase="contract"), "web", when="after_bake")
    release = whole(*whole().components, contract)
    assert names(release.now) == ["schema", "index", "web"]
    assert names(release.after_bake) == ["contract"]


def test_the_targets_of_what_is_deployed_now_are_held_each_once():
    late = component("late", application("late"), "web", when="after_bake")
    assert whole(*whole().components, late).holds == ("application-web", "database-memories")


# --- what makes no sense ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        pytest.param(
            (component("web", application()), component("web", application("other"))),
            "Two components are called web",
            id="one name twice",
        ),
        pytest.param(
            (component("web", application(), "schem"),),
            "web comes after schem, which this release does not",
            id="a slip of the pen",
        ),
        pytest.param(
            (
                component("a", application("a"), "b"),
                component("b", application("b"), "a"),
                component("c", application("c"), "b"),
                component("d", application("d")),
            ),
            "a, b, c wait for each other",
            id="a circle",
        ),
        pytest.param((component("a", application("a"), "a"),), "a wait for each other", id="after itself"),
        pytest.param(
            (component("schema", schema()), component("index", index())),
            "schema and index both change database-memories: say by `after`",
            id="one target, no order",
        ),
        pytest.param(
            (component("schema", schema()), component("web", application())),
            "web works with what schema adds: let it come after schema",
            id="an application before its schema",
        ),
        pytest.param(
            (
                component("web", application()),
                component("gone", schema("0003", phase="contract"), "web"),
            ),
            "gone takes away what an older application needs, .* set its `when` to after_bake",
            id="a contract step at once",
        ),
        pytest.param(
            (
                component("web", application()),
                component("gone", schema("0003", phase="contract"), when="after_bake"),
            ),
            "gone takes away what web used before: let it come after web",
            id="a contract step that waits for nobody",
        ),
        pytest.param(
            (
                component("late", application("late"), "soon", when="after_bake"),
                component("soon", application("soon")),
                component("web", application(), "late"),
            ),
            "web comes after late, which is deployed after the bake",
            id="now, after what comes later",
        ),
        pytest.param(
            (component("late", application(), when="after_bake"),),
            "Nothing of it is deployed now",
            id="none now",
        ),
        pytest.param(
            (component("schema", schema(), strategy=Canary()),),
            "schema is a postgres_schema, which is not deployed canary: it has no instances",
            id="a canary of a schema",
        ),
        pytest.param(
            (component("index", index(), strategy=InPlace(instance="blue-1")),),
            "index is a pgvector_index",
            id="an instance of an index",
        ),
        pytest.param(
            (component("nodes", NODES, strategy=BlueGreen()),),
            "nodes have no traffic to shift",
            id="blue nodes",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(parts, words):
    with pytest.raises(ValidationError, match=words):
        whole(*parts)


def test_all_that_is_wrong_is_said_at_once():
    parts = (
        component("schema", schema(), strategy=Canary()),
        component("index", index()),
        component("web", application()),
    )
    assert len(list(faults(parts))) == 3


@pytest.mark.parametrize(
    ("change", "strategy"),
    [
        (application(), Canary()),
        (application(), InPlace(instance="blue-1")),
        (MODEL, BlueGreen()),
        (NODES, Rolling()),
        (schema(serves=()), InPlace()),
    ],
)
def test_what_fits_is_taken(change, strategy):
    assert whole(component("one", change, strategy=strategy)).now[0].strategy == strategy


def test_two_changes_of_one_target_go_one_after_the_other_also_through_a_third():
    parts = (
        component("first", schema(serves=())),
        component("web", application(), "first"),
        component("index", index(), "web"),
    )
    assert names(whole(*parts).now) == ["first", "web", "index"]


# --- as data ---------------------------------------------------------------------------------------


def test_a_release_survives_json():
    release = whole(
        *whole().components, component("gone", schema("3", phase="contract"), "web", when="after_bake")
    )
    assert Release.model_validate_json(release.model_dump_json()) == release


def test_another_content_of_a_component_makes_another_release():
    other = component("web", application(release="2.1"), "index", "schema")
    assert whole(*whole().components[:2], other).id != whole().id
    assert whole().id == whole().id


def test_its_form_has_tabs_a_plain_union_each_told_apart_by_a_default():
    defined = Release.model_json_schema()["$defs"]
    union = defined["Component"]["properties"]["change"]
    assert "discriminator" not in json.dumps(union)
    for one in union["anyOf"]:
        name = one["$ref"].rpartition("/")[2]
        assert (
            defined[name]["properties"]["component"]["default"]
            == defined[name]["properties"]["component"]["const"]
        )
        assert defined[name]["additionalProperties"] is False


def test_the_example_of_its_page_is_a_release():
    page = (Path(__file__).parents[2] / "docs/release.md").read_text()
    example = json.loads(page.partition("```json\n")[2].partition("\n```")[0])
    release = Release.model_validate(example["change"])
    assert names(release.now) == ["schema", "index", "web"]
    assert names(release.after_bake) == ["contract"]
