"""Rows that refer to content: read, set and restored on a real PostgreSQL, proven on real Kubo nodes."""

from __future__ import annotations

import hashlib
import threading

import psycopg
import pytest

from lab.kubo import LabKubo
from lab.kubo_install import why_not
from rules.content_actions import RestoreReferences, SetReferences, VerifyReferences
from rules.errors import (
    FencedError,
    InvalidRequestError,
    StepFailedError,
    VerdictFailedError,
    WorldMovedError,
)
from rules.ipfs import AddOptions, ContentFile, ContentReferences, IpfsContent, ReferenceChange
from tasks import content_references, kubo
from tasks.postgres import DatabaseError, application_name, connection
from tasks.reference_rows import reference_rows
from tests.tasks.databases import execute, fresh_database, impatient, pids_of, reader, session

NAME = "ipfs-memories-2026-11-28"
ROWS = ContentReferences(table="public.episodes", key="id", cid="cid")
EMPTY = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
EMPTY_V1 = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


def cid(letter):
    return "Qm" + letter * 44


OLD, NEW, OTHER = cid("x"), cid("a"), cid("z")


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        execute(made, "CREATE TABLE episodes (id bigint PRIMARY KEY, cid text)")
        yield made


def fill(database, **rows):
    """Give the table these rows: number -> CID."""
    with session(database) as connected, connected.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO episodes VALUES (%s, %s)", [(int(key[1:]), value) for key, value in rows.items()]
        )


def move(database, key, value):
    """Change a row as somebody else would."""
    with session(database) as connected:
        connected.execute("UPDATE episodes SET cid = %s WHERE id = %s", (value, key))


def held(database):
    return dict(execute(database, "SELECT id, cid FROM episodes ORDER BY id"))


def changes(*rows):
    return tuple(ReferenceChange(key=str(key), old=old, new=new) for key, old, new in rows)


def put(database, *rows, heed=lambda: None):
    action = SetReferences(changes=changes(*rows))
    content_references.set_references(database, ROWS, action, deployment=NAME, heed=heed)


def restore(database, *rows):
    step = RestoreReferences(changes=changes(*rows))
    return content_references.restore_references(database, ROWS, step, deployment=NAME)


def read(database, *keys, of=ROWS):
    return content_references.read_references(database, of, keys, deployment=NAME)


def referred(database, *cids):
    return content_references.referred(database, ROWS, cids, deployment=NAME)


# --- read ------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_are_written_and_those_that_are_not_there_are_left_out(database):
    fill(database, _1=OLD, _2=None, _3=f"ipfs://{OLD}/x")
    assert read(database, "1", "2", "3", "4", "1") == {"1": OLD, "2": None, "3": f"ipfs://{OLD}/x"}
    assert read(database) == {}


def test_a_row_is_named_by_its_key_as_the_database_writes_it(database):
    fill(database, _7=OLD)
    assert read(database, "07", " 7") == {}
    assert read(database, "7") == {"7": OLD}


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("text", "O'Hara; --"),
        ("varchar(20)", "%s"),
        ("uuid", "5f0c954e-0e0f-4c0c-9f2c-0d2b5b6a7c11"),
        ("date", "2026-11-28"),
    ],
)
def test_keys_of_any_type_are_found_set_and_restored(database, kind, key):
    execute(database, f"CREATE TABLE named (name {kind} PRIMARY KEY, content varchar(80))")
    with session(database) as connected:
        connected.execute("INSERT INTO named VALUES (%s, %s)", (key, OLD))
    named = ContentReferences(table="public.named", key="name", cid="content")
    change = changes((key, OLD, NEW))
    set_ = SetReferences(changes=change)
    content_references.set_references(database, named, set_, deployment=NAME, heed=lambda: None)
    assert read(database, key, of=named) == {key: NEW}
    back = RestoreReferences(changes=change)
    content_references.restore_references(database, named, back, deployment=NAME)
    assert read(database, key, of=named) == {key: OLD}


@pytest.mark.parametrize(
    ("made", "keys", "words"),
    [
        ("", ["1"], "public.things is no table"),
        ("CREATE VIEW things AS SELECT 1 AS id, ''::text AS cid", ["1"], "public.things is no table"),
        ("CREATE TABLE things (id int)", ["1"], "has no column cid"),
        ("CREATE TABLE things (id int, cid bytea)", ["1"], "things.cid is of type bytea; it has to be text"),
        ("CREATE TABLE things AS SELECT 1 AS id, ''::text AS cid", ["1", "one"], "keys 1, one can be one of"),
        (
            "CREATE TABLE things AS SELECT 1 AS id, ''::text AS cid UNION ALL SELECT 1, 'a'",
            ["1"],
            "names several rows for 1: it has to be unique",
        ),
    ],
)
def test_what_cannot_be_read_for_sure_is_refused(database, made, keys, words):
    if made:
        execute(database, made)
    things = ContentReferences(table="public.things", key="id", cid="cid")
    with pytest.raises(InvalidRequestError, match=words):
        read(database, *keys, of=things)


# --- what any row refers to ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        EMPTY,
        f"ipfs://{EMPTY}",
        f"/ipfs/{EMPTY}/a/b.txt",
        f"https://gate/ipfs/{EMPTY}?x=1",
        EMPTY_V1,
        f"ipfs://{EMPTY_V1}",
        f"https://{EMPTY_V1}.ipfs.example.org/a",
        f"see {EMPTY}, and more",
    ],
)
def test_a_row_refers_to_a_cid_in_whatever_form_it_is_written(database, written):
    fill(database, _1=OTHER, _900=written, _2=None)
    assert referred(database, EMPTY, OLD) == {EMPTY}
    assert referred(database, EMPTY_V1) == {EMPTY_V1}


def test_what_no_row_refers_to_is_not_said_to_be_referred_to(database):
    assert referred(database, OLD) == set()
    fill(database, _1=NEW, _2=f"ipfs://{OTHER}", _3="", _4=f"ipfs://{OLD[:-1]}/x", _5=None)
    assert referred(database, OLD) == set()
    assert referred(database) == set()


def test_rows_that_a_policy_would_hide_are_no_reason_to_say_that_nothing_refers_to_it(postgres, database):
    fill(database, _1=OLD)
    role = f"r_{database.address.database}"
    try:
        execute(database, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON episodes TO {role}")
        execute(database, "ALTER TABLE episodes ENABLE ROW LEVEL SECURITY")
        address = database.address.model_copy(update={"user": role})
        with pytest.raises(DatabaseError, match="row-level security"):
            referred(database.model_copy(update={"address": address}), OLD)
    finally:
        execute(database, f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- set -------------------------------------------------------------------------------------------


def test_all_rows_come_to_refer_to_the_new_content_and_once_more_is_fine(database):
    fill(database, _1=OLD, _2=None, _3=OLD)
    rows = ((1, OLD, NEW), (2, None, OTHER))
    for _ in range(2):
        put(database, *rows)
        assert held(database) == {1: NEW, 2: OTHER, 3: OLD}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"_1": OLD, "_2": OTHER}, f"row 2 refers to {OTHER}, not {OLD}. No row was changed"),
        ({"_1": OLD}, "row 2 is gone"),
        ({"_1": NEW, "_2": OLD}, f"row 1 refers to {NEW}, not {OLD}"),
        ({"_1": OLD, "_2": None}, "row 2 refers to NULL"),
    ],
)
def test_a_row_that_moved_since_the_plan_stops_it_and_none_is_changed(database, rows, words):
    fill(database, **rows)
    before = held(database)
    with pytest.raises(WorldMovedError, match=words):
        put(database, (1, OLD, NEW), (2, OLD, NEW))
    assert held(database) == before


def test_readers_see_all_rows_old_or_all_rows_new(database):
    execute(database, "INSERT INTO episodes SELECT g, '' FROM generate_series(1, 400) g")
    rows = [(number, "", NEW) for number in range(1, 401)]
    mixed = "SELECT 1 / (count(DISTINCT cid) = 1)::int FROM episodes"  # an error where they differ
    with reader(database, mixed) as reads:
        for _ in range(4):
            put(database, *rows)
            restore(database, *rows)
    assert not reads.errors
    assert len(reads.took_s) > 4


def test_a_row_that_somebody_holds_is_waited_for_only_so_long_and_nothing_is_changed(database):
    fill(database, _1=OLD, _2=OLD)
    with session(database, autocommit=False, name="forgotten-psql") as other:
        other.execute("UPDATE episodes SET cid = cid WHERE id = 2")
        with pytest.raises(StepFailedError, match=r"setting 2 references.*forgotten-psql.*Nothing of it was"):
            put(impatient(database), (1, OLD, NEW), (2, OLD, NEW))
        other.rollback()
    assert held(database) == {1: OLD, 2: OLD}


def test_a_row_that_changes_while_it_is_waited_for_is_seen_as_it_has_become(database):
    fill(database, _1=OLD)
    with session(database, autocommit=False) as other:
        other.execute("UPDATE episodes SET cid = %s", (OTHER,))
        after = threading.Timer(0.3, other.commit)
        after.start()
        with pytest.raises(WorldMovedError, match=f"row 1 refers to {OTHER}"):
            put(database, (1, OLD, NEW))
        after.join()
    assert held(database) == {1: OTHER}


def test_rows_that_refer_to_ours_by_foreign_key_can_be_written_while_ours_are_locked(database):
    fill(database, _1=OLD)
    execute(database, "CREATE TABLE notes (episode bigint REFERENCES episodes)")
    with connection(database, deployment=NAME) as ours:
        assert reference_rows(ours, ROWS).locked(["1"]) == {"1": [OLD]}
        with session(database) as user:
            user.execute("SET lock_timeout = '2s'")
            user.execute("INSERT INTO notes VALUES (1)")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                user.execute("SET lock_timeout = '50ms'; UPDATE episodes SET cid = ''")


@pytest.mark.parametrize("body", ["NEW.cid := OLD.cid; RETURN NEW", "RETURN NULL"])
def test_a_trigger_that_keeps_a_row_as_it_is_makes_it_fail_with_nothing_changed(database, body):
    fill(database, _1=OLD, _2=OLD)
    execute(
        database,
        f"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$;"
        "CREATE TRIGGER keep BEFORE UPDATE ON episodes FOR EACH ROW WHEN (OLD.id = 2) "
        "EXECUTE FUNCTION keep()",
    )
    with pytest.raises(StepFailedError, match=r"did not take cid as it was given, in row 2\. No row was"):
        put(database, (1, OLD, NEW), (2, OLD, NEW))
    assert held(database) == {1: OLD, 2: OLD}


def test_who_was_fenced_off_changes_nothing(database):
    fill(database, _1=OLD)

    def fenced():
        raise FencedError("recovered by another process")

    with pytest.raises(FencedError):
        put(database, (1, OLD, NEW), heed=fenced)
    assert held(database) == {1: OLD}


def test_rows_of_partitions_are_set_and_found(database):
    execute(database, "DROP TABLE episodes")
    execute(database, "CREATE TABLE episodes (id bigint PRIMARY KEY, cid text) PARTITION BY RANGE (id)")
    for name, low in (("early", 0), ("late", 10)):
        execute(
            database, f"CREATE TABLE {name} PARTITION OF episodes FOR VALUES FROM ({low}) TO ({low + 10})"
        )
    fill(database, _1=OLD, _11=OLD)
    put(database, (1, OLD, NEW), (11, OLD, NEW))
    assert held(database) == {1: NEW, 11: NEW}
    assert referred(database, OLD, NEW) == {NEW}


# --- restore ---------------------------------------------------------------------------------------


def test_rows_come_back_to_what_they_referred_to_however_often_it_is_done(database):
    fill(database, _1=OLD, _2=None)
    rows = ((1, OLD, NEW), (2, None, NEW))
    assert "0 of 2 rows refer to what they did before again; 2 did already." in restore(database, *rows)
    put(database, *rows)
    assert "2 of 2 rows" in restore(database, *rows)
    assert held(database) == {1: OLD, 2: None}
    restore(database, *rows)
    assert held(database) == {1: OLD, 2: None}


def test_rows_that_somebody_else_has_changed_are_told_and_left(database):
    rows = ((1, OLD, NEW), (2, OLD, NEW), (3, OLD, NEW))
    fill(database, _1=OLD, _2=OLD, _3=OLD)
    put(database, *rows)
    move(database, 2, OTHER)
    execute(database, "DELETE FROM episodes WHERE id = 3")
    said = restore(database, *rows)
    assert "1 of 3 rows" in said
    assert f"left so: row 2 refers to {OTHER}, row 3 is gone." in said
    assert held(database) == {1: OLD, 2: OTHER}


def test_what_a_dead_deployer_still_holds_is_ended_first(database):
    fill(database, _1=OLD)
    with session(database, autocommit=False, name=application_name(NAME)) as dead:
        dead.execute("UPDATE episodes SET cid = %s", (NEW,))
        assert pids_of(database, NAME)
        restore(impatient(database), (1, OLD, NEW))
        with pytest.raises(psycopg.OperationalError):
            dead.commit()
    assert held(database) == {1: OLD}


# --- verify ----------------------------------------------------------------------------------------

FILES = {"a/one.txt": b"one " * 100, "a/two.txt": b"two", "three.txt": b"three " * 50_000}


@pytest.fixture(scope="module")
def ipfs(tmp_path_factory):
    if words := why_not():
        pytest.skip(words)
    with LabKubo(tmp_path_factory.mktemp("kubo")) as running:
        yield running


@pytest.fixture(scope="module")
def cids(ipfs, tmp_path_factory):
    """Content on both nodes: path -> CID."""
    directory = tmp_path_factory.mktemp("content")
    for path, written in FILES.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_bytes(written)
    options = {"options": AddOptions(), "heed": lambda: None, "timeout_s": 30}
    added = [kubo.add(node, str(directory), **options) for node in ipfs.nodes]
    return added[0]


@pytest.fixture
def verified(ipfs, cids, database):
    """Two rows that refer to a directory and to a file, which both nodes have pinned."""
    for node in ipfs.nodes:
        for path in ("a", "three.txt"):
            kubo.pin(node, cids[path], timeout_s=30)
    fill(database, _1=cids["a"], _2=cids["three.txt"])
    yield verification(cids)
    for node in ipfs.nodes:
        ipfs.mend(node.name)


def verification(cids):
    files = {
        cids[path]: ContentFile(
            path=path, size_bytes=len(FILES[path]), sha256=hashlib.sha256(FILES[path]).hexdigest()
        )
        for path in ("a/two.txt", "three.txt")
    }
    rows = changes((1, OLD, cids["a"]), (2, OLD, cids["three.txt"]))
    return VerifyReferences(changes=rows, nodes=("one", "two"), files=files)


def verify(ipfs, database, action, *, heed=lambda: None, replicas=2):
    content = IpfsContent(name="memories", nodes=ipfs.nodes, references=ROWS, fetch_s=20, replicas=replicas)
    return content_references.verify_references(content, database, action, deployment=NAME, heed=heed)


def test_rows_whose_content_each_node_keeps_and_gives_are_proven(ipfs, database, verified):
    asked = []
    said = verify(ipfs, database, verified, heed=lambda: asked.append(1))
    assert said == (
        "2 rows of public.episodes refer to 2 CIDs; one, two pinned each and gave 2 files of them."
    )
    assert len(asked) >= 7  # before the rows, each node and each file


def test_a_row_that_refers_to_something_else_is_no_proof(ipfs, database, verified):
    move(database, 2, OTHER)
    with pytest.raises(WorldMovedError, match=f"row 2 refers to {OTHER}, not Qm"):
        verify(ipfs, database, verified)
    execute(database, "DELETE FROM episodes WHERE id = 2")
    with pytest.raises(WorldMovedError, match="row 2 is gone"):
        verify(ipfs, database, verified)


def test_a_node_that_has_not_pinned_it_is_no_proof(ipfs, cids, database, verified):
    kubo.unpin(ipfs.node("two"), cids["three.txt"])
    with pytest.raises(VerdictFailedError, match=f"two has not pinned {cids['three.txt']}, which rows refer"):
        verify(ipfs, database, verified)


def test_a_node_that_gives_other_bytes_is_no_proof(ipfs, cids, database, verified):
    ipfs.lie("two", cids["a/two.txt"], b"ten")
    with pytest.raises(VerdictFailedError, match=r"two gives 3 bytes with SHA-256 .* of a/two.txt"):
        verify(ipfs, database, verified)


def test_a_node_that_does_not_answer_does_no_harm_where_enough_others_do(ipfs, database, verified):
    ipfs.kill("two")
    with pytest.raises(
        VerdictFailedError, match=r"proven on 1 of the 2 nodes.* two does not .* rows are set back"
    ):
        verify(ipfs, database, verified)
    said = verify(ipfs, database, verified, replicas=1)
    assert said.endswith("CIDs; one pinned each and gave 2 files of them. two did not answer.")
