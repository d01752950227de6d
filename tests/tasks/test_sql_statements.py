"""Where a statement ends and whether it destroys data: by tables, by chance, and beside the server itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.postgres import Postgres
from tasks.sql_lexer import tokens
from tasks.sql_statements import destroys_data, shape, split_statements, without_comments


@pytest.fixture(scope="module")
def session(postgres: Postgres) -> Iterator[psycopg.Connection]:
    name = f"split_{secrets.token_hex(4)}"
    postgres.create_database(name)
    with psycopg.connect(postgres.url(name), autocommit=True, prepare_threshold=None) as connection:
        yield connection


# --- splitting -------------------------------------------------------------------------------------

# each is one statement that gives one value, and would end too early or too late for a careless reader
TRICKY = {
    "SELECT 'a;b'": "a;b",
    "SELECT 'it''s; fine'": "it's; fine",
    r"SELECT 'back\'": "back\\",
    r"SELECT E'it\'s; fine'": "it's; fine",
    "SELECT E'a'\n  -- a comment; between\n  '\\';b'": "a';b",
    "SELECT e'\\\\'": "\\",
    "SELECT U&'\\00e4;'": "ä;",
    "SELECT B'1'::text": "1",
    "SELECT $$a;'b$$": "a;'b",
    "SELECT $x$a;$$b;$y$c$x$": "a;$$b;$y$c",
    "SELECT $ä1$;$ä1$": ";",
    'SELECT 1 AS "a;""b"': 1,
    "SELECT 1 /* a; /* b; */ c; */ + 1": 2,
    "SELECT 1 -- a; 'b\n + 1": 2,
    "SELECT 8 /*; -- */ - 1": 7,
    "SELECT 3 --1; */ /*\n": 3,
    "SELECT (SELECT count(*) FROM (VALUES (1), (2)) AS v)": 2,
    "SELECT a$1 FROM (SELECT 1 AS a$1) AS a$b$": 1,
    "SELECT 5 OPERATOR(pg_catalog.-) 1": 4,
    "SELECT (ARRAY[1,2,3])[2:3]::text": "{2,3}",
    "SELECT '{\"a\": \";\"}'::jsonb->>'a'": ";",
    "SELECT 1 AS\u00a0x": 1,
}


@pytest.mark.parametrize(("statement", "value"), TRICKY.items())
def test_a_tricky_statement_stays_whole_and_the_server_reads_it_the_same(session, statement, value):
    script = f"{statement}\n;\n{statement}\n; SELECT 'the last'"
    parts = split_statements(script)
    assert len(parts) == 3
    rows = [session.execute(part.encode()).fetchone() for part in parts]  # type: ignore[arg-type]
    assert rows == [(value,), (value,), ("the last",)]


def test_rules_and_routines_with_semicolons_within_stay_whole(session):
    script = """
        CREATE TABLE notes (id int, body text);
        CREATE TABLE kept (LIKE notes);
        CREATE RULE keep AS ON DELETE TO notes DO ALSO (INSERT INTO kept VALUES (OLD.id, ''); NOTIFY gone);
        CREATE OR REPLACE FUNCTION sized(n int) RETURNS text LANGUAGE sql
        BEGIN ATOMIC
            SELECT count(*) FROM notes;
            SELECT CASE WHEN n > 1 THEN CASE WHEN n > 9 THEN 'huge' ELSE 'big' END ELSE 'small' END;
        END;
        CREATE PROCEDURE tidy() LANGUAGE plpgsql AS $body$ BEGIN DELETE FROM notes; COMMIT; END; $body$;
        DO $$ BEGIN PERFORM 1; END; $$;
        CREATE TABLE atomic (begin int, "end" int);
        INSERT INTO notes VALUES (1, 'x')
    """
    parts = split_statements(script)
    assert [part.split()[1] for part in parts] == [
        *("TABLE", "TABLE", "RULE", "OR", "PROCEDURE", "$$", "TABLE", "INTO")
    ]
    for part in parts:
        session.execute(part.encode())  # type: ignore[arg-type]
    assert session.execute("SELECT sized(1), sized(5), sized(10)").fetchone() == ("small", "big", "huge")


def test_comments_and_semicolons_alone_are_no_statement():
    assert split_statements("-- a; b\n;; /* c; /* d; */ */ ;\n") == ()
    assert split_statements("") == ()
    assert split_statements("-- first\n SELECT 1 -- one\n ; -- last\n") == ("SELECT 1",)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT 1;\nSELECT 'a", "line 2: the quote ' is not closed"),
        ('SELECT "a', 'the quote " is not closed'),
        ("SELECT E'a\\'", "the quote ' is not closed"),
        ("SELECT 1 /* a /* b */", "the comment /\\* is not closed"),
        ("SELECT $a$ b $A$", "the body after \\$a\\$ is not closed"),
        ("SELECT 1;\n\nSELECT (1;\nSELECT 2", "line 3: the statement that begins here is not closed"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1;", "not closed"),
    ],
)
def test_what_is_not_closed_is_an_error_that_names_its_line(sql, words):
    with pytest.raises(ValueError, match=words):
        split_statements(sql)


NAMES = st.from_regex(r"[a-z_é][a-z0-9_$]{0,6}", fullmatch=True)
TEXTS = st.text(st.sampled_from("ab;'\"\\$-/*()\n\t é%"), max_size=12)
PIECES = st.one_of(
    NAMES,
    st.integers(0, 99).map(str),
    st.sampled_from(["+", "=", "::", "->>", ",", ".", "[", "]", "<", "@@"]),
    TEXTS.map(lambda text: "'" + text.replace("'", "''") + "'"),
    TEXTS.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    TEXTS.map(lambda text: '"' + text.replace('"', '""') + '"'),
    TEXTS.map(lambda text: f"$tag$ {text} $tag$"),
)
BETWEEN = st.one_of(
    st.sampled_from([" ", "\n", "\t", "\r\n"]),
    TEXTS.map(lambda text: " --" + text.replace("\n", " ") + "\n"),
    TEXTS.map(lambda text: " /* " + text.replace("*", ".").replace("/", ".") + " /* ; */ */ "),
)


@st.composite
def statements(draw):
    """A statement that begins with a word and ends with something that is no comment."""
    text = draw(NAMES)
    for piece in draw(st.lists(PIECES, max_size=6)):
        inner = f"({piece};{draw(PIECES)})" if draw(st.booleans()) else piece
        text += draw(BETWEEN) + inner
    return text


@given(st.lists(statements(), max_size=5), st.lists(BETWEEN, min_size=6, max_size=6))
def test_statements_that_were_joined_are_given_back(parts, gaps):
    script = gaps[-1] + "".join(f"{part}{gap};" for part, gap in zip(parts, gaps, strict=False))
    assert split_statements(script) == tuple(parts)
    assert split_statements(script.rstrip("; ")) == tuple(parts)


@given(st.text(st.sampled_from("ab;'\"\\$-/*()\n e1")))
def test_all_of_a_text_is_in_its_tokens_or_it_is_refused(sql):
    try:
        pieces = list(tokens(sql))
    except ValueError:
        return
    assert "".join(piece.text for piece in pieces) == sql


@given(statements())
def test_taking_comments_out_changes_no_word(statement):
    bare = without_comments(statement)
    assert shape(bare) == shape(statement)
    assert not any(piece.kind == "comment" for piece in tokens(bare))


def test_a_large_insert_is_split_in_time_that_grows_with_its_size():
    rows = ",\n".join(f"({i}, 'row -- {i}; ''x''', NULL)" for i in range(10_000))
    insert = "INSERT INTO notes VALUES " + rows  # noqa: S608 - only read, by us
    begin = time.monotonic()
    assert split_statements(f"{insert}; SELECT 1;") == (insert, "SELECT 1")
    assert not destroys_data(insert)
    assert time.monotonic() - begin < 20  # about 1 on a quiet machine; minutes if it grew with the square


def test_the_words_of_a_statement_hide_what_is_quoted():
    words = shape("alter TABLE only \"drop\".Notes /* ; */ ADD\n column x text DEFAULT E'a\\'' || $$b$$ -- c")
    assert words == "ALTER TABLE ONLY \"\" . NOTES ADD COLUMN X TEXT DEFAULT '' | | ''"


# --- destroying ------------------------------------------------------------------------------------

HARMLESS = """
CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY, kind text CHECK (kind IN ('a', 'b')))
CREATE TABLE IF NOT EXISTS notes (id int REFERENCES other (id) ON DELETE CASCADE ON UPDATE CASCADE)
CREATE TABLE copy AS SELECT id, lower(kind), now() FROM notes WHERE id IN (1, 2)
CREATE TABLE part PARTITION OF notes FOR VALUES FROM (1) TO (2)
CREATE UNIQUE INDEX CONCURRENTLY i ON notes USING hnsw (embedding vector_cosine_ops)
CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE sql AS $$ DELETE FROM notes $$
CREATE TRIGGER t AFTER UPDATE OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION f()
CREATE EXTENSION IF NOT EXISTS vector
CREATE TYPE mood AS ENUM ('sad', 'happy')
CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM notes
ALTER TABLE notes ADD COLUMN drop text DEFAULT 'x'
ALTER TABLE notes ADD body text, ADD CONSTRAINT c CHECK (id > 0) NOT VALID, ALTER body SET DEFAULT 'drop'
ALTER TABLE ONLY public.notes ALTER COLUMN body SET NOT NULL, VALIDATE CONSTRAINT c
ALTER TABLE IF EXISTS "no""tes" ADD FOREIGN KEY (id) REFERENCES o (id) ON DELETE CASCADE
ALTER TABLE notes RENAME COLUMN a TO b
ALTER TABLE notes DROP CONSTRAINT c
ALTER TABLE notes ALTER COLUMN a DROP DEFAULT, ALTER COLUMN b DROP NOT NULL
ALTER TABLE notes ATTACH PARTITION part FOR VALUES FROM (1) TO (2)
ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'angry'
ALTER INDEX i RENAME TO j
ALTER INDEX parent ATTACH PARTITION child
ALTER FUNCTION f(int, text) OWNER TO somebody
INSERT INTO notes (id, body) VALUES (1, 'delete'), (2, 'UPDATE')
INSERT INTO notes (body) SELECT upper(body) FROM (SELECT body FROM notes) AS x ON CONFLICT (id) DO NOTHING
INSERT INTO notes VALUES ('[1,2,3]'::vector(3), gen_random_uuid(), nextval('s'))
INSERT INTO notes SELECT * FROM other FOR UPDATE
DROP INDEX IF EXISTS i
DROP VIEW v
DROP FUNCTION f(int)
COMMENT ON TABLE notes IS 'DROP TABLE'
GRANT SELECT, DELETE ON notes TO somebody
VACUUM notes
ANALYZE
REINDEX INDEX CONCURRENTLY i
SET LOCAL search_path TO x
""".strip().splitlines()

DESTROYING = """
DROP TABLE notes
drop table if exists notes
DROP SCHEMA s
DROP TYPE mood
DROP SEQUENCE s
DROP EXTENSION vector
DROP MATERIALIZED VIEW m
DROP VIEW v CASCADE
DROP FUNCTION f(int) CASCADE
ALTER TABLE notes DROP COLUMN body
ALTER TABLE notes DROP body
ALTER TABLE notes ADD COLUMN a int DEFAULT f(1, 2), DROP COLUMN b
ALTER TABLE notes DROP CONSTRAINT pk CASCADE
ALTER TABLE notes ALTER COLUMN id TYPE bigint
ALTER TABLE notes ALTER id SET DATA TYPE text
ALTER TABLE notes ALTER COLUMN id DROP EXPRESSION
ALTER TABLE notes SET UNLOGGED
ALTER TYPE pair DROP ATTRIBUTE a
ALTER SEQUENCE s RESTART WITH 1
ALTER SYSTEM SET fsync = off
DELETE FROM notes WHERE id = 1
DELETE FROM ONLY "notes"
/* harmless */ UPDATE notes SET body = 'x' WHERE id = 1
TRUNCATE notes
MERGE INTO notes USING other ON (true) WHEN MATCHED THEN DELETE
INSERT INTO notes VALUES (1) ON CONFLICT (id) DO UPDATE SET body = 'x'
INSERT INTO notes VALUES (forget_all())
INSERT INTO notes (body) SELECT public.lower(body) FROM other
INSERT INTO notes SELECT "lower"(body) FROM other
INSERT INTO notes WITH gone AS (DELETE FROM other RETURNING *) SELECT * FROM gone
WITH gone AS (DELETE FROM other RETURNING *) INSERT INTO notes SELECT * FROM gone
CREATE TABLE copy AS SELECT forget_all()
CREATE TABLE copy (id) AS VALUES (forget_all())
CREATE TABLE copy AS EXECUTE prepared
DO $$ BEGIN NULL; END $$
CALL tidy()
SELECT forget_all()
SELECT 1
EXPLAIN ANALYZE DELETE FROM notes
REFRESH MATERIALIZED VIEW m
COPY notes FROM '/tmp/x'
CREATE DATABASE d
SOMETHING new
CREATE TABLE a (id int); DROP TABLE b
""".strip().splitlines()


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_only_adds_destroys_nothing(statement):
    assert not destroys_data(statement)
    assert not destroys_data(statement.lower())


@pytest.mark.parametrize("statement", DESTROYING)
def test_what_no_way_down_brings_back_destroys_and_so_does_what_is_not_known(statement):
    assert destroys_data(statement)
    assert destroys_data(statement.lower())


@given(st.sampled_from(DESTROYING), st.sampled_from(HARMLESS))
def test_one_destroying_statement_among_others_is_enough(bad, good):
    assert destroys_data(f"{good};\n{bad};\n{good}")
    assert not destroys_data(f"{good};\n-- {bad}\n;{good}")
