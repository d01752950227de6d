"""The model of content in IPFS: any part of any plan, taken back newest first, is the state before."""

from __future__ import annotations

import base64
from typing import Annotated

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from rules.cid_spellings import spellings
from rules.content_actions import (
    ContentAction,
    ContentUndo,
    SetReferences,
    VerifyContent,
    content_applied,
    content_undone,
    not_taken_back,
)
from rules.content_plan import concerned, plan_content
from rules.ipfs import ContentState
from rules.plan import Plan
from rules.undo import AnyUndoStep
from tests.rules.contents import CIDS, OLD, change, cid, content, releases, situation, watched

UNDO = TypeAdapter[ContentUndo](AnyUndoStep)
ACTION = TypeAdapter[ContentAction](Annotated[ContentAction, Field(discriminator="action")])


def planned(release) -> Plan:
    asked, of, found = release
    return plan_content(asked, of, watched(), found)


plans = releases().map(planned)


def after(state, steps, *, times=1):
    for step in steps:
        for _ in range(times):
            state = content_applied(state, step.action)
    return state


def taken_back(state, steps, *, times=1):
    for step in reversed(steps):
        for _ in range(times if step.undo else 0):
            state = content_undone(state, step.undo)
    return state


# --- the way back ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(plans, st.data())
def test_any_part_of_a_plan_taken_back_newest_first_is_the_state_before(plan, data):
    done = plan.steps[: data.draw(st.integers(0, len(plan.steps)))]
    assert taken_back(after(plan.content_before, done), done) == plan.content_before


@settings(max_examples=40)
@given(plans, st.data())
def test_taking_back_twice_and_what_never_happened_is_the_same(plan, data):
    before, count = plan.content_before, data.draw(st.integers(0, len(plan.steps)))
    intended = plan.steps[:count]
    for reached in (after(before, intended[:-1]), after(before, intended)):
        assert taken_back(reached, intended, times=2) == before
        assert taken_back(taken_back(reached, intended), intended) == before


@settings(max_examples=40)
@given(plans)
def test_doing_each_step_twice_is_doing_it_once(plan):
    assert after(plan.content_before, plan.steps, times=2) == plan.content_after


@settings(max_examples=40)
@given(plans)
def test_each_step_survives_json_and_means_the_same(plan):
    now = plan.content_before
    for step in plan.steps:
        assert ACTION.validate_json(ACTION.dump_json(step.action)) == step.action
        now = content_applied(now, step.action)
        assert ContentState.model_validate_json(now.model_dump_json()) == now
        if step.undo:
            read = UNDO.validate_json(UNDO.dump_json(step.undo))
            assert read == step.undo
            assert content_undone(now, read) == content_undone(now, step.undo)
            assert read.describe()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@settings(max_examples=40)
@given(plans)
def test_what_changes_the_state_has_a_way_back(plan):
    now = plan.content_before
    for step in plan.steps:
        then = content_applied(now, step.action)
        assert step.undo is not None or then == now
        now = then


@settings(max_examples=40)
@given(plans, st.data())
def test_a_way_back_is_told_from_one_that_leaves_rows_or_lost_old_pins(plan, data):
    before, end = plan.content_before, plan.content_after
    done = plan.steps[: data.draw(st.integers(0, len(plan.steps)))]
    assert not_taken_back(taken_back(after(before, done), done), before, end) == ()
    new = {key for key, cid in end.references.items() if cid != before.references[key]}
    left = [words.partition(":")[0] for words in not_taken_back(end, before, end)]
    assert left == sorted(new), "pins beyond are no harm, rows are"
    for node, cids in before.pinned.items():
        lost = before.model_copy(update={"pinned": {**before.pinned, node: cids[1:]}})
        assert not_taken_back(lost, before, end) == tuple(f"{node}: {cid} is not pinned" for cid in cids[:1])
        away = {name: held for name, held in before.pinned.items() if name != node}
        assert not_taken_back(before.model_copy(update={"pinned": away}), before, end) == ()


def test_rows_that_somebody_else_has_changed_or_removed_are_no_difference_after_the_way_back():
    plan = planned((change(), content(), situation()))
    theirs = plan.content_before.model_copy(update={"references": {"1": cid("z")}})
    assert not_taken_back(theirs, plan.content_before, plan.content_after) == ()


def test_a_row_that_somebody_else_has_changed_is_left_by_the_way_back():
    plan = planned((change(), content(), situation()))
    now = after(plan.content_before, plan.steps)
    moved = now.model_copy(update={"references": {**now.references, "1": cid("z")}})
    assert taken_back(moved, plan.steps).references == {**plan.content_before.references, "1": cid("z")}


# --- what always holds -----------------------------------------------------------------------------


@settings(max_examples=40)
@given(plans)
def test_a_row_never_comes_to_refer_to_what_was_not_verified_before(plan):
    verified: set[str] = set()
    now = plan.content_before
    for step in plan.steps:
        if isinstance(step.action, VerifyContent):
            verified |= set(step.action.cids)
        then = content_applied(now, step.action)
        new = {then.references[key] for key in then.references if then.references[key] != now.references[key]}
        assert new <= verified
        now = then


@settings(max_examples=40)
@given(plans)
def test_when_rows_are_set_every_node_that_answers_keeps_what_they_refer_to(plan):
    now = plan.content_before
    for step in plan.steps:
        if isinstance(step.action, SetReferences):
            assert all({row.new for row in step.action.changes} <= set(pins) for pins in now.pinned.values())
        now = content_applied(now, step.action)


@settings(max_examples=40)
@given(plans)
def test_nothing_that_was_pinned_is_let_go_before_the_end(plan):
    now = plan.content_before
    for step in plan.steps:
        now = content_applied(now, step.action)
        for node, pins in plan.content_before.pinned.items():
            assert set(pins) <= set(now.pinned[node])


@settings(max_examples=40)
@given(plans)
def test_the_end_lets_go_of_nothing_that_the_rows_of_the_change_refer_to_and_only_of_what_is_pinned(plan):
    after_all = plan.content_after
    for finish in plan.finish:
        assert not set(finish.cids) & set(after_all.references.values())
        assert set(finish.cids) <= set(after_all.pinned[finish.node])


@settings(max_examples=40)
@given(plans)
def test_what_remains_of_a_change_in_the_end_is_what_rows_refer_to(plan):
    let_go = {one.node: set(one.cids) for one in plan.finish}
    referred = set(plan.content_after.references.values())
    for node, pins in plan.content_after.pinned.items():
        came = set(pins) - set(plan.content_before.pinned[node])
        assert came - let_go.get(node, set()) <= referred


@settings(max_examples=40)
@given(plans)
def test_every_cid_that_a_plan_touches_is_among_those_it_asks_for(plan):
    asked = set(concerned(plan))
    for state in (plan.content_before, plan.content_after):
        assert {c for c in state.references.values() if c} <= asked
        assert {c for pins in state.pinned.values() for c in pins} <= asked
    assert {c for one in plan.finish for c in one.cids} <= asked


# --- spellings -------------------------------------------------------------------------------------

# of the empty directory, in both versions and three bases: known to everybody who runs IPFS
EMPTY = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
EMPTY_V1 = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


def test_a_cid_is_known_in_its_other_version():
    assert EMPTY_V1 in spellings(EMPTY)
    assert EMPTY in spellings(EMPTY_V1)
    assert set(spellings(EMPTY)) == set(spellings(EMPTY_V1))
    assert sum(one.startswith("z") for one in spellings(EMPTY)) == 1


def test_raw_leaves_have_no_version_0():
    raw = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert not any(one.startswith("Qm") for one in spellings(raw))
    assert len(spellings(raw)) == 2


def test_what_is_no_well_formed_cid_has_no_other_spelling():
    assert spellings(OLD) == (OLD,)
    assert spellings(CIDS["a"])[0] == CIDS["a"]
    assert spellings("b" + "a" * 24) == ("b" + "a" * 24,)


@given(st.binary(min_size=32, max_size=32))
def test_every_spelling_that_can_be_read_leads_to_the_same_ones(digest):
    first = "b" + base64.b32encode(b"\x01\x70\x12\x20" + digest).decode().lower().rstrip("=")
    known = set(spellings(first))
    for one in known:
        if one.startswith(("Qm", "b")):
            assert set(spellings(one)) == known
