"""Plans of content in IPFS: the order of their steps, what is skipped, told, refused and let go."""

from __future__ import annotations

import pytest

from rules.content_plan import concerned, plan_content
from rules.errors import InvalidRequestError
from rules.ipfs import ContentFile
from rules.plan import Plan
from rules.strategy import InPlace
from tests.rules.contents import CIDS, FILES, OLD, change, cid, content, situation, watched

WANTED = (CIDS["a"], CIDS["three.txt"])


def planned(*, of=None, wanted=None, found=None) -> Plan:
    return plan_content(wanted or change(), of or content(), watched(), found or situation())


def kinds(plan):
    return [(step.action.action, getattr(step.action, "node", "")) for step in plan.steps]


def action(plan, kind):
    (found,) = [step.action for step in plan.steps if step.action.action == kind]
    return found


# --- steps -----------------------------------------------------------------------------------------


def test_content_is_added_pinned_and_proven_before_rows_refer_to_it():
    plan = planned()
    assert kinds(plan) == [
        ("add_content", "one"),
        ("pin_content", "one"),
        ("pin_content", "two"),
        ("verify_content", ""),
        ("set_references", ""),
        ("verify_references", ""),
    ]
    assert [step.number for step in plan.steps] == list(range(6))
    assert plan.strategy == InPlace()
    assert plan.before == watched()
    assert plan.content_before.references == {"1": OLD, "2": OLD}
    assert plan.content_after.references == {"1": CIDS["a"], "2": CIDS["three.txt"]}
    assert plan.content_after.pinned["two"] == tuple(sorted({OLD, *WANTED}))


def test_each_step_is_told_in_words():
    assert [step.title for step in planned().steps] == [
        "one: add 3 files, 22 bytes",
        "one: fetch and pin 2 CIDs",
        "two: fetch and pin 2 CIDs",
        "verify 2 CIDs on one, two, 3 files read back",
        "public.episodes: 2 rows to the new content",
        "public.episodes: verify that 2 rows and content agree",
    ]


def test_the_content_goes_to_the_first_node_of_the_block_that_answers():
    found = situation(pinned={"three": (), "two": ()}, away={"one": "no answer"})
    plan = planned(of=content("one", "two", "three"), found=found)
    assert action(plan, "add_content").node == "two"
    assert [node for _, node in kinds(plan)][:3] == ["two", "two", "three"]
    assert action(plan, "verify_content").added_to == "two"
    assert action(plan, "verify_references").nodes == ("two", "three")


def test_files_below_what_rows_refer_to_are_read_back_and_the_others_are_not():
    plan = planned(wanted=change({"1": "a"}), found=situation(references={"1": OLD}))
    assert action(plan, "verify_content").files == {CIDS[f.path]: f for f in FILES[:2]}
    assert action(plan, "verify_references").files == {CIDS["a/two.txt"]: FILES[1]}
    whole = planned(wanted=change({"1": ""}), found=situation(references={"1": OLD}))
    assert set(action(whole, "verify_content").files.values()) == set(FILES)


def test_a_name_that_begins_like_a_directorys_is_not_below_it():
    files = (*FILES, ContentFile(path="ab.txt", size_bytes=1, sha256="4" * 64))
    found = situation(references={"1": OLD}, files=files, cids={**CIDS, "ab.txt": cid("4")})
    plan = planned(wanted=change({"1": "a"}), found=found)
    assert cid("4") not in action(plan, "verify_content").files


def test_content_that_is_one_file_is_added_read_back_and_referred_to():
    file = ContentFile(path="", size_bytes=9, sha256="5" * 64)
    found = situation(references={"1": None}, files=(file,), cids={"": cid("5")})
    plan = planned(wanted=change({"1": ""}), found=found)
    assert kinds(plan)[:2] == [("add_content", "one"), ("pin_content", "two")]
    assert action(plan, "verify_content").files == {cid("5"): file}
    assert action(plan, "verify_references").files == {cid("5"): file}


# --- what is skipped -------------------------------------------------------------------------------


def test_nothing_is_planned_when_rows_and_all_nodes_have_it_already():
    rows = {"1": CIDS["a"], "2": CIDS["three.txt"]}
    plan = planned(found=situation(references=rows, pinned={"one": WANTED, "two": WANTED}))
    assert plan.steps == ()
    assert plan.finish == ()
    assert plan.notes == ("2 rows refer to it already, and one, two keep it pinned.",)
    assert plan.content_after == plan.content_before


def test_a_node_that_lacks_it_is_brought_up_though_the_rows_are_right_already():
    rows = {"1": CIDS["a"], "2": CIDS["three.txt"]}
    plan = planned(found=situation(references=rows, pinned={"one": WANTED, "two": ()}))
    assert kinds(plan) == [("pin_content", "two"), ("verify_content", ""), ("verify_references", "")]
    assert plan.finish == ()


def test_what_the_first_node_keeps_already_is_not_sent_again():
    for pinned in (WANTED, (CIDS[""],)):
        plan = planned(found=situation(pinned={"one": (OLD, *pinned), "two": (OLD,)}))
        assert "add_content" not in [kind for kind, _ in kinds(plan)]
        assert CIDS[""] not in {c for one in plan.finish for c in one.cids}  # not ours to let go


def test_rows_that_are_right_already_are_verified_and_not_set():
    plan = planned(found=situation(references={"1": CIDS["a"], "2": OLD}))
    assert [row.key for row in action(plan, "set_references").changes] == ["2"]
    assert [row.key for row in action(plan, "verify_references").changes] == ["1", "2"]


def test_only_pins_that_were_not_there_are_made_and_taken_back():
    plan = planned(found=situation(pinned={"one": (), "two": (CIDS["a"],)}))
    (pin,) = [step for step in plan.steps if getattr(step.action, "node", "") == "two"]
    assert pin.action.cids == (CIDS["three.txt"],)
    assert pin.undo.cids == (CIDS["three.txt"],)


# --- what is let go in the end ---------------------------------------------------------------------


def test_in_the_end_old_pins_go_where_they_were_and_the_root_where_it_was_added():
    plan = planned(found=situation(pinned={"one": (OLD,), "two": ()}))
    assert [(one.node, one.cids) for one in plan.finish] == [("one", (OLD, CIDS[""]))]


def test_a_root_that_a_row_refers_to_stays():
    plan = planned(wanted=change({"1": "", "2": "a"}))
    assert [(one.node, one.cids) for one in plan.finish] == [("one", (OLD,)), ("two", (OLD,))]


def test_old_content_stays_where_another_row_comes_to_refer_to_it():
    found = situation(references={"1": CIDS["three.txt"], "2": None}, pinned={"one": WANTED, "two": WANTED})
    plan = planned(found=found)
    assert plan.finish == ()


# --- what people are told --------------------------------------------------------------------------


def test_rows_sizes_storage_and_what_goes_are_told():
    found = situation(references={"1": OLD, "2": None}, away={"three": "three is off."})
    notes = planned(of=content("one", "two", "three"), found=found).notes
    away = (
        "three gets nothing and keeps what it has, as it does not answer: three is off. Deploy the same "
        "again once it is back."
    )
    assert notes == (
        f"3 files, 22 bytes; all of it is {CIDS['']}.",
        f"Row 1: from {OLD} to {CIDS['a']} (a).",
        f"Row 2: from NULL to {CIDS['three.txt']} (three.txt).",
        "one: 2.0 MB of 10.0 MB used before.",
        "two: 2.0 MB of 10.0 MB used before.",
        f"Unpinned once the bake is over, where no row refers to it by then: {OLD}.",
        away,
    )


def test_files_that_no_row_leads_to_are_told():
    notes = planned(wanted=change({"1": "a"})).notes
    assert any(note.startswith("1 file, 7 bytes, below nothing that these rows refer to") for note in notes)


def test_old_content_that_nobody_keeps_is_told():
    notes = planned(found=situation(pinned={"one": (), "two": ()})).notes
    assert any(f"Rows refer now to {OLD}, which no node that answers has pinned" in note for note in notes)


def test_many_rows_are_told_by_their_number():
    wanted = {f"{number:02}": "a" for number in range(25)}
    rows = {**dict.fromkeys(wanted, OLD), "00": CIDS["a"]}
    notes = planned(wanted=change(wanted), found=situation(references=rows)).notes
    assert sum(note.startswith("Row ") for note in notes) == 20
    assert "4 more rows likewise; the plan's steps name each." in notes
    assert "1 of 25 rows refer to it already." in notes


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found", "words"),
    [
        ({"1": "b"}, {}, "/srv/content has no b, which rows are to refer to. Nothing was touched"),
        ({"1": "a", "9": "a"}, {}, "public.episodes has no row whose id is 9"),
        ({"1": "a"}, {"references": {"1": f"ipfs://{OLD}/x"}}, "plain CID .* or NULL: row 1 holds ipfs://Qm"),
        ({"1": "a"}, {"references": {"1": ""}}, "Store plain CIDs"),
        (
            {"1": "a"},
            {"pinned": {"one": ()}, "away": {"two": "two is off."}},
            "1 of 2 answer. two is off. Not",
        ),
    ],
)
def test_what_cannot_go_well_is_refused_with_what_would(wanted, found, words):
    with pytest.raises(InvalidRequestError, match=words):
        planned(wanted=change(wanted), found=situation(**found))


def test_all_that_a_plan_is_about_can_be_asked_for():
    plan = planned()
    assert concerned(plan) == tuple(sorted({OLD, CIDS[""], *WANTED}))
    assert concerned(plan.model_copy(update={"content": None})) == ()
