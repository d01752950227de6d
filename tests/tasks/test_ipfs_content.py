"""Content on real nodes, added, pinned, proven and forgotten: rows always refer to what is there."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.kubo import LabKubo
from rules.content_actions import (
    AddContent,
    PinContent,
    RestoreReferences,
    UnpinContent,
    UnpinOld,
    VerifyContent,
    content_applied,
)
from rules.content_plan import concerned, plan_content
from rules.database import Database
from rules.errors import AbortedError, DeployError, StepFailedError, VerdictFailedError
from rules.ipfs import AddOptions, IpfsContent
from rules.plan import Plan
from tasks import kubo
from tasks.content_files import ContentFilesError
from tasks.content_references import restore_references
from tasks.content_state import observe_content
from tasks.content_survey import survey_content
from tasks.ipfs_content import add_content, unpin_content, unpin_old, verify_content
from tests.tasks.databases import fresh_database, session
from tests.tasks.pinning import (
    NOBODY,
    OTHER_V0,
    as_new,
    content_on,
    do,
    files_in,
    fill,
    lab_nodes,
    release,
    rows_of,
    told_node,
)

NAME = "2026-01-02-papers-1"
#: The steps of a plan, by their numbers.
ADD, PIN_ONE, PIN_TWO, VERIFY = range(4)
STILL_OLD = "No row was changed: all refer to their old content"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with lab_nodes(tmp_path_factory.mktemp("kubo")) as lab:
        yield lab


@pytest.fixture
def lab(running):
    yield running
    as_new(running)


@dataclass
class World:
    """Nodes, rows, a release that is deployed or not, and the plan of the next one."""

    lab: LabKubo
    content: IpfsContent
    database: Database
    directory: Path
    plan: Plan = None
    old: dict[str, str | None] = None

    def planned(self, name):
        """Plan a release of that name; its content is new to all nodes."""
        change = release(site(self.directory / name), {"site": "img", "logo": "img/logo.svg"}, name=name)
        return self.planned_again(change)

    def planned_again(self, change):
        situation = survey_content(change, self.content, self.database, deployment=NAME)
        self.plan = plan_content(change, self.content, NOBODY, situation)
        return self.plan

    def do(self, action, heed=lambda: None):
        do(self.content, self.database, self.plan.change, action, deployment=NAME, heed=heed)

    def do_all(self, up_to=None):
        for step in self.plan.steps[:up_to]:
            self.do(step.action)

    def undo(self, step):
        match step:
            case UnpinContent():
                return unpin_content(self.content, self.database, step, deployment=NAME)
            case RestoreReferences():
                return restore_references(self.database, self.content.references, step, deployment=NAME)

    @property
    def undos(self):
        return [step.undo for step in reversed(self.plan.steps) if step.undo]

    @property
    def rows(self):
        return rows_of(self.database)

    def action(self, kind, node=None):
        return next(
            step.action
            for step in self.plan.steps
            if isinstance(step.action, kind) and node in {None, getattr(step.action, "node", None)}
        )

    def observed(self):
        keys, cids = self.plan.change.references, concerned(self.plan)
        return observe_content(self.content, self.database, keys=keys, cids=cids, deployment=NAME)

    def collect(self):
        """Collect garbage everywhere, and look what is left."""
        for node in self.lab.nodes:
            self.lab.gc(node.name)
        self.holds_what_rows_refer_to()

    def holds_what_rows_refer_to(self):
        """See it whole on as many nodes as are to keep it."""
        for key, cid in self.rows.items():
            holders = [node.name for node in self.lab.nodes if cid is None or self.lab.has(node.name, cid)]
            assert len(holders) >= self.content.replicas, f"{key}: {cid} is whole on {holders} only"

    def fails(self, number, words, kind=StepFailedError, heed=lambda: None):
        """Do the steps before `number`; the next one fails, and says so."""
        self.do_all(number)
        with pytest.raises(kind, match=words) as failed:
            self.do(self.plan.steps[number].action, heed=heed)
        assert STILL_OLD in str(failed.value)

    def is_taken_back(self):
        """Take it all back, whatever of it was done: all is as before, and nothing that rows need is lost."""
        assert self.rows == self.old
        for step in self.undos:
            self.undo(step)
        assert self.rows == self.old
        assert self.observed() == self.plan.content_before
        self.holds_what_rows_refer_to()


@pytest.fixture
def world(lab, postgres, tmp_path):
    """Nothing is deployed yet; the first release is planned."""
    with fresh_database(postgres) as database:
        fill(database, {"site": None, "logo": None, "other": None})
        made = World(lab, content_on(lab), database, tmp_path)
        made.planned("first")
        yield made


@pytest.fixture
def live(world):
    """The first release is deployed for good and users read it; the second one is planned."""
    world.do_all()
    for step in world.plan.finish:
        unpin_old(world.content, world.database, step, deployment=NAME)
    world.old = world.rows
    world.planned("second")
    return world


def site(directory):
    """Content that no node holds yet."""
    files = {"index_html": os.urandom(50), "img__logo_svg": os.urandom(600_000), "loose": os.urandom(10)}
    return files_in(directory, **files)


# --- all goes well ---------------------------------------------------------------------------------


def test_each_step_brings_about_what_it_means_and_twice_is_once(world):
    state = world.plan.content_before
    for step in world.plan.steps:
        for _ in range(2):
            world.do(step.action)
        state = content_applied(state, step.action)
        assert world.observed() == state, step.title
    assert state == world.plan.content_after


def test_each_way_back_restores_what_was_and_twice_is_once(world):
    world.do_all()
    for step in world.undos:
        for _ in range(2):
            world.undo(step)
    assert world.observed() == world.plan.content_before


def test_nothing_that_is_referred_to_is_ever_collected(live):
    plan, lab = live.plan, live.lab
    for step in plan.steps:  # there
        live.do(step.action)
        live.collect()
    assert live.rows["logo"] == plan.content_after.references["logo"]
    for step in live.undos:  # and back
        live.undo(step)
        live.collect()
    assert live.observed() == plan.content_before
    live.do_all()  # there once more, and it stays
    for step in plan.finish:
        assert set(unpin_old(live.content, live.database, step, deployment=NAME)) == set(step.cids)
    live.collect()
    wanted = {cid for cid in live.rows.values() if cid}
    assert set(lab.pins("one")) == set(lab.pins("two")) == wanted, "nothing but what rows refer to"
    assert not lab.has("one", live.old["logo"])


def test_what_is_there_already_is_not_sent_again(world):
    add, told = world.action(AddContent), []
    world.do(add)
    world.lab.full("one", "message")  # it could not be added any more
    add_content(world.content, world.plan.change, add, progress=told.append)
    assert told == [add.size_bytes]


def test_the_proof_says_what_was_seen(world):
    world.do_all(VERIFY)
    said = verify_content(world.content, world.action(VerifyContent))
    assert "2 CIDs pinned on one, two (2 wanted)" in said
    assert "1 files of 600,000 bytes read back byte-exact from two" in said


# --- something goes wrong: rows refer to what they did, and all of it can be taken back -------------


@pytest.mark.parametrize("how", ["trailer", "message"])
def test_a_full_disk_while_adding(live, how):
    live.lab.full("one", how)
    live.fails(ADD, r"was not added to one: .*no space left on device.*Make room")
    live.lab.mend("one")
    live.is_taken_back()


def test_a_full_disk_while_pinning(live):
    live.lab.full("two")
    live.fails(PIN_TWO, r"two did not pin Qm.*no space left on device.*Make room")
    live.is_taken_back()


def test_a_peer_that_cannot_be_reached(live):
    live.lab.cut("two")
    live.content = live.content.model_copy(update={"pin_s": 2.0})
    live.fails(PIN_TWO, r"two did not pin Qm.*did not come by all of .*ipfs swarm peers")
    live.lab.mend("two")
    live.is_taken_back()


def test_a_peer_that_comes_back_in_time_is_waited_for(live, monkeypatch):
    monkeypatch.setattr("tasks.ipfs_content._SLICE_S", 2.0)
    live.do_all(PIN_TWO)
    live.lab.kill("one")
    again = threading.Timer(3.0, lambda: live.lab.start_node("one", connected=False))
    again.start()
    try:
        live.do(live.plan.steps[PIN_TWO].action)
    finally:
        again.join()
    assert live.lab.has("two", live.action(PinContent, "two").cids[0])


def test_nodes_that_lost_each_other_since_the_plan_are_connected_before_it_is_fetched(live):
    pin = live.action(PinContent, "one").model_copy(update={"cids": (OTHER_V0,)})

    def script(talk):
        asked = [before.command for before in told.seen]
        if talk.command == "pin/ls" and "pin/add" in asked:
            talk.answer({"Keys": {OTHER_V0: {"Type": "recursive"}}})
        elif talk.command == "pin/ls":
            talk.answer({})
        elif asked.count("pin/add") == 1 and talk.command == "pin/add":
            error = {"Message": "pin: context deadline exceeded", "Code": 0, "Type": "error"}
            talk.answer(error, status="500 Internal Server Error")
        else:
            talk.answer({})

    with told_node(script) as told:
        live.content = live.content.model_copy(
            update={"nodes": (told.node, live.lab.node("two")), "pin_s": 60}
        )
        live.do(pin)
    each_time = ["swarm/connect", "pin/add"]
    assert told.commands == ["pin/ls", *each_time, *each_time, "pin/ls"]


def test_a_node_that_dies_in_the_middle_of_pinning(live):
    words = r"two did not pin Qm.*does not answer.*Deploy again once the node works"
    live.fails(PIN_TWO, words, heed=lambda: live.lab.kill("two"))
    said = [live.undo(step) for step in live.undos]
    assert any("two does not answer and keeps what it has pinned" in one for one in said)
    assert live.rows == live.old
    live.lab.mend("two")
    live.is_taken_back()


def test_a_node_that_dies_while_it_is_sent_to(live):
    live.fails(ADD, r"was not added to one: one does not answer", heed=lambda: live.lab.kill("one"))
    live.lab.mend("one")
    live.is_taken_back()


def test_a_node_that_hangs(live, monkeypatch):
    live.do_all(PIN_TWO)
    live.lab.hang("two")
    with monkeypatch.context() as patched:
        patched.setattr(kubo, "_ASK_S", 1.0)
        live.fails(PIN_TWO, r"two did not pin Qm.*within 1 s")
    live.lab.mend("two")
    live.is_taken_back()


@pytest.mark.parametrize(
    ("content", "said"),
    [(bytes(600_000), "600,000 bytes"), (b"short", "5 bytes")],
    ids=["as large", "shorter"],
)
def test_a_node_that_gives_other_bytes(live, content, said):
    live.lab.lie("two", next(iter(live.action(VerifyContent).files)), content)
    words = rf"two gives Qm\w+ \(img/logo.svg\) as {said} with SHA-256 \w+, not 600,000 with"
    live.fails(VERIFY, words, kind=VerdictFailedError)
    live.lab.mend("two")
    live.is_taken_back()


def test_files_are_read_back_from_another_node_than_the_one_they_were_added_to(live):
    live.lab.lie("one", next(iter(live.action(VerifyContent).files)), b"lie")
    live.do_all(VERIFY + 1)


def test_too_few_nodes_that_keep_it(live):
    verify = live.action(VerifyContent)
    live.do_all(VERIFY)
    kubo.unpin(live.lab.node("two"), verify.cids[0])
    with pytest.raises(
        VerdictFailedError, match=f"1 nodes .*, 2 have to: two has not pinned {verify.cids[0]}"
    ):
        live.do(verify)
    live.lab.kill("two")
    with pytest.raises(VerdictFailedError, match="two does not answer"):
        live.do(verify)
    live.lab.mend("two")
    live.is_taken_back()


def test_files_that_changed_since_they_were_planned(live):
    (live.directory / "second/index.html").write_text("changed since")
    before = live.lab.pins("one")
    with pytest.raises(ContentFilesError, match="declared was"):
        live.do(live.action(AddContent))
    time.sleep(0.3)
    assert live.lab.pins("one") == before


def test_other_cids_than_planned(live):
    add = live.action(AddContent)
    other = add.model_copy(update={"root": OTHER_V0, "cids": {**add.cids, "": OTHER_V0}})
    with pytest.raises(StepFailedError, match=rf"came to the root {add.root} on one, planned was") as failed:
        live.do(other)
    assert STILL_OLD in str(failed.value)


def test_a_node_that_only_says_that_it_pinned(live):
    add, pin = live.action(AddContent), live.action(PinContent)

    def script(talk):
        talk.read_body()
        match talk.command:
            case "add":
                rows = [{"Name": f"content/{path}", "Hash": cid} for path, cid in add.cids.items() if path]
                talk.answer(*rows, {"Name": "content", "Hash": add.root})
            case "pin/add":
                talk.answer({"Pins": [dict(talk.params)["arg"]]})
            case _:
                error = {"Message": "path is not pinned", "Code": 0, "Type": "error"}
                talk.answer(error, status="500 Internal Server Error")

    with told_node(script) as liar:
        live.content = live.content.model_copy(update={"nodes": (liar.node,)})
        with pytest.raises(StepFailedError, match="it said so, and has not pinned"):
            live.do(add)
        with pytest.raises(StepFailedError, match=r"one said that it pinned Qm\w+, and has not"):
            live.do(pin)


def test_who_has_to_stop_stops_and_what_was_done_is_taken_back(live):
    def stop():
        raise AbortedError("aborted by ada")

    for number in (ADD, PIN_TWO, VERIFY):
        live.do_all(number)
        with pytest.raises(AbortedError):
            live.do(live.plan.steps[number].action, heed=stop)
    live.is_taken_back()


# --- forgotten -------------------------------------------------------------------------------------


def refer(world, key, text):
    with session(world.database) as connection:
        connection.execute("UPDATE documents SET cid = %s WHERE name = %s", (text, key))


def test_what_a_row_refers_to_stays_pinned_whoever_asks(live):
    logo, img = live.old["logo"], live.old["site"]
    for key, text in {"other": f"ipfs://{logo}", "logo": None, "site": None}.items():
        refer(live, key, text)
    assert live.undo(UnpinContent(node="two", cids=(logo,))) == (
        f"two: 0 CIDs not pinned any more; {logo} stays, a row refers to it"
    )
    step = UnpinOld(node="two", cids=(logo, img))
    assert unpin_old(live.content, live.database, step, deployment=NAME) == (img,)
    assert live.lab.pins("two") == (logo,)


def test_a_directory_stays_whose_file_a_row_refers_to(world):
    """As after `ipfs add -r`: the whole is pinned, its files are only as parts of it."""
    one, source = world.lab.node("one"), site(world.directory / "by-hand")
    cids = kubo.add(one, str(source), options=AddOptions(), heed=lambda: None, timeout_s=20)
    logo = cids["img/logo.svg"]
    refer(world, "other", logo)
    step = UnpinOld(node="one", cids=(cids[""],))
    assert unpin_old(world.content, world.database, step, deployment=NAME) == ()
    world.lab.gc("one")
    assert world.lab.has("one", logo)
    kubo.pin(one, logo, timeout_s=20)  # now it does not need the whole
    assert unpin_old(world.content, world.database, step, deployment=NAME) == (cids[""],)
    world.lab.gc("one")
    assert world.lab.has("one", logo)


def test_a_node_that_is_away_forgets_later(world):
    world.do_all(PIN_TWO + 1)
    step = UnpinOld(node="two", cids=world.action(PinContent, "two").cids)
    world.lab.kill("two")
    with pytest.raises(kubo.KuboUnreachableError):
        unpin_old(world.content, world.database, step, deployment=NAME)
    world.lab.mend("two")
    assert unpin_old(world.content, world.database, step, deployment=NAME) == step.cids
    assert unpin_old(world.content, world.database, step, deployment=NAME) == ()


def test_without_the_database_nothing_is_forgotten(live):
    address = live.database.address.model_copy(update={"database": "not_there"})
    nowhere = live.database.model_copy(update={"address": address})
    before = live.lab.pins("two")
    step = UnpinContent(node="two", cids=(live.old["logo"],))
    with pytest.raises(DeployError, match="not_there"):
        unpin_content(live.content, nowhere, step, deployment=NAME)
    assert live.lab.pins("two") == before


def test_a_node_that_only_says_that_it_unpinned_is_not_believed(live):
    logo = OTHER_V0  # no row refers to it

    def script(talk):
        match talk.command:
            case "pin/ls":
                talk.answer({"Keys": {logo: {"Type": "recursive"}}})
            case "ls":
                talk.answer({"Objects": [{"Links": []}]})
            case _:
                talk.answer({"Pins": [logo]})

    with told_node(script) as liar:
        live.content = live.content.model_copy(update={"nodes": (liar.node,)})
        with pytest.raises(kubo.KuboError, match=f"said that it unpinned {logo}, and has not"):
            live.undo(UnpinContent(node="one", cids=(logo,)))
