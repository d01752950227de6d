"""PostgreSQL's statements in a text: where each ends, what it begins with, and whether it destroys data.

The text is read by the server's lexical rules, not by its grammar: that is enough to know what is a keyword,
and what stands in quotes, bodies and comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tasks.sql_lexer import Token, line_of, tokens

_ROUTINE = re.compile(r"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE)\b")
_WORDS_THAT_TELL = 4
_CASCADES = re.compile(r"(?:DROP|ALTER)\b.*(?<!ON DELETE )(?<!ON UPDATE )\bCASCADE\b")
_MAKES_ROWS = re.compile(
    r"CREATE [^(]*?\b(?:TABLE|MATERIALIZED VIEW)\b.* AS (?P<query>.*\b(?:SELECT|VALUES|EXECUTE)\b.*)"
)

_NAME = r"(?:[^ ]+(?:\ \.\ [^ ]+)*)"
#: Statements that only add, or take away what a way down can make again.
_KEEPS_DATA = re.compile(
    rf"""
      CREATE\ (?!DATABASE|TABLESPACE|SUBSCRIPTION|SERVER|USER|ROLE|GROUP)
    | COMMENT\ ON | GRANT | REVOKE | ANALYZE | VACUUM | REINDEX | CLUSTER | LOCK | SET | RESET | INSERT
    | ALTER\ TYPE\ {_NAME}\ (?:ADD\ VALUE|RENAME|OWNER\ TO|SET\ SCHEMA)
    | ALTER\ DOMAIN\ {_NAME}\ (?:ADD|SET|DROP|VALIDATE|RENAME|OWNER\ TO)
    | ALTER\ (?:INDEX|VIEW|MATERIALIZED\ VIEW|SEQUENCE|SCHEMA|STATISTICS|COLLATION|PUBLICATION)
      \ (?:IF\ EXISTS\ )?{_NAME}\ (?:RENAME|OWNER\ TO|SET\ SCHEMA|ATTACH\ PARTITION|SET\ \(|RESET\ \()
    | ALTER\ (?:FUNCTION|PROCEDURE|ROUTINE|AGGREGATE)
      \ {_NAME}\ (?:\([^()]*\)\ )?(?:RENAME|OWNER\ TO|SET\ SCHEMA)
    | ALTER\ (?:TRIGGER|POLICY)\ {_NAME}\ ON
    | DROP\ (?:INDEX|VIEW|FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TRIGGER|POLICY|RULE|CAST|STATISTICS)
    """,
    re.VERBOSE,
)
_ALTER_TABLE = re.compile(
    rf"ALTER (?:FOREIGN )?TABLE (?:IF EXISTS )?(?:ONLY )?{_NAME}(?: \*)? (?P<actions>.+)"
)
_KEEPING_ACTION = re.compile(
    rf"""
      ADD | VALIDATE | RENAME | OWNER\ TO | ENABLE | DISABLE | FORCE | NO\ FORCE | INHERIT | NO\ INHERIT
    | ATTACH\ PARTITION | DETACH\ PARTITION | REPLICA\ IDENTITY | CLUSTER\ ON | SET\ WITHOUT\ CLUSTER
    | SET\ SCHEMA | SET\ LOGGED | SET\ \( | RESET\ \( | DROP\ CONSTRAINT | ALTER\ CONSTRAINT
    | ALTER\ (?:COLUMN\ )?{_NAME}\ (?:
        (?:SET|DROP)\ DEFAULT | (?:SET|DROP)\ NOT\ NULL | SET\ STATISTICS | SET\ STORAGE | SET\ COMPRESSION
      | SET\ \( | RESET\ \( | ADD\ GENERATED | SET\ GENERATED)
    """,
    re.VERBOSE,
)
_INSERT_TARGET = re.compile(rf"INSERT INTO {_NAME}(?: AS [^ ]+)?(?: \([^()]*\))?")
_CHANGES_ROWS = re.compile(r"\b(?:DELETE|MERGE|TRUNCATE|EXECUTE|DO UPDATE)\b|(?<!FOR )(?<!NO KEY )\bUPDATE\b")
#: What may stand before a parenthesis in a query without running code that we do not know.
_KNOWN = re.compile(
    r"""
      VALUES|SELECT|DISTINCT|FROM|JOIN|LATERAL|ON|USING|WHERE|AND|OR|NOT|IN|EXISTS|ANY|ALL|SOME
    | BETWEEN|LIKE|AS|CASE|WHEN|THEN|ELSE|BY|HAVING|UNION|INTERSECT|EXCEPT|OVER|FILTER|ROW|ARRAY
    | CONFLICT|RETURNING|WITH|LIMIT|OFFSET|MATERIALIZED|SETS|ROLLUP|CUBE|GROUP|CAST|VARCHAR|CHAR
    | CHARACTER|VARYING|NUMERIC|DECIMAL|BIT|TIME|TIMESTAMP|TIMESTAMPTZ|INTERVAL|VECTOR|HALFVEC
    | SPARSEVEC|NOW|CLOCK_TIMESTAMP|DATE_TRUNC|TO_TIMESTAMP|EXTRACT|AGE|COALESCE|NULLIF|GREATEST|LEAST
    | COUNT|SUM|MIN|MAX|AVG|BOOL_AND|BOOL_OR|ARRAY_AGG|STRING_AGG|JSONB_AGG|ROW_NUMBER|RANK|LAG|LEAD
    | LOWER|UPPER|TRIM|BTRIM|LENGTH|SUBSTRING|REPLACE|CONCAT|CONCAT_WS|FORMAT|LEFT|RIGHT|SPLIT_PART
    | MD5|SHA256|ENCODE|DECODE|TO_CHAR|TO_NUMBER|TO_DATE|GENERATE_SERIES|UNNEST|ARRAY_FILL|RANDOM
    | GEN_RANDOM_UUID|UUIDV4|UUIDV7|NEXTVAL|JSONB_BUILD_OBJECT|JSON_BUILD_OBJECT|JSONB_BUILD_ARRAY
    | TO_JSONB|TO_JSON|ABS|ROUND|FLOOR|CEIL|MOD|POWER|SQRT|SIGN|[^A-Z0-9_$"']
    """,
    re.VERBOSE,
)
_CALL = re.compile(r"(?P<qualifier>\. )?(?P<name>[^ ]+) \(")


def split_statements(sql: str) -> tuple[str, ...]:
    """Return the statements of `sql`, without the semicolons and comments between them.

    Semicolons within parentheses (CREATE RULE) and within a routine's BEGIN ATOMIC … END end nothing.

    Raises:
        ValueError: a quote, body, comment, parenthesis or BEGIN ATOMIC is not closed.
    """
    statements: list[str] = []
    pieces: list[Token] = []
    nesting = _Nesting()
    for piece in _significant(sql):
        if piece.text == ";" and not nesting.is_open:
            statements += _text(sql, pieces)
            pieces, nesting = [], _Nesting()
        else:
            nesting.add(piece)
            pieces.append(piece)
    if nesting.is_open:
        raise ValueError(
            f"line {line_of(sql, pieces[0].start)}: the statement that begins here is not closed"
        )
    return (*statements, *_text(sql, pieces))


def shape(statement: str) -> str:
    """Return the statement's words in capitals with one space between them, for patterns to match.

    What stands in quotes has no words: a string or a body becomes `''`, a quoted name `""`; comments go.

    Raises:
        ValueError: as `tokens`.
    """
    stands_for = {"escaped": "''", "string": "''", "dollar": "''", "quoted": '""'}
    return " ".join(stands_for.get(piece.kind, piece.text.upper()) for piece in _significant(statement))


def without_comments(statement: str) -> str:
    """Return the statement with a space in place of each comment.

    Raises:
        ValueError: as `tokens`.
    """
    return "".join(" " if piece.kind == "comment" else piece.text for piece in tokens(statement))


def destroys_data(statement: str) -> bool:
    """Return whether it may take away what no way down can bring back; what is not known, does.

    Rows that users write afterwards, and a way down that takes away what was there before, are not seen here.

    Raises:
        ValueError: as `split_statements`.
    """
    return any(_destroys(shape(part)) for part in split_statements(statement))


def _destroys(words: str) -> bool:
    if _CASCADES.match(words):
        return True
    if altered := _ALTER_TABLE.fullmatch(words):
        return not all(_KEEPING_ACTION.match(action) for action in _actions(altered["actions"]))
    if not _KEEPS_DATA.match(words):
        return True
    if words.startswith("INSERT"):
        return _runs_unknown(_INSERT_TARGET.sub("", words, count=1))
    if made := _MAKES_ROWS.match(words):
        return _runs_unknown(made["query"])
    return False


def _runs_unknown(query: str) -> bool:
    """Return whether a query changes rows that are there, or calls functions that may."""
    return bool(_CHANGES_ROWS.search(query)) or any(
        call["qualifier"] or not _KNOWN.fullmatch(call["name"]) for call in _CALL.finditer(query)
    )


def _actions(words: str) -> list[str]:
    """Return the actions of ALTER TABLE: what commas outside parentheses part."""
    actions, depth = [""], 0
    for word in words.split(" "):
        depth += (word in "([") - (word in ")]")
        if word == "," and depth == 0:
            actions.append("")
        else:
            actions[-1] += f"{word} "
    return actions


def _significant(sql: str) -> Iterator[Token]:
    return (piece for piece in tokens(sql) if piece.kind not in ("space", "comment"))


class _Nesting:
    """How deep a statement is in parentheses and in a routine's BEGIN ATOMIC: there no semicolon ends it."""

    def __init__(self) -> None:
        self._depth, self._last, self._is_atomic = 0, "", False
        self._first: list[str] = []

    @property
    def is_open(self) -> bool:
        return self._depth > 0

    def add(self, piece: Token) -> None:
        word = piece.text.upper() if piece.kind in ("word", "symbol") else ""
        if word in ("(", ")"):
            self._depth += 1 if word == "(" else -1
        elif word == "ATOMIC" and self._last == "BEGIN" and _ROUTINE.match(" ".join(self._first)):
            self._depth, self._is_atomic = self._depth + 1, True
        elif self._is_atomic and self.is_open:
            self._depth += (word == "CASE") - (word == "END")
        self._last = word
        if len(self._first) < _WORDS_THAT_TELL:
            self._first.append(word)


def _text(sql: str, pieces: list[Token]) -> tuple[str, ...]:
    return (sql[pieces[0].start : pieces[-1].start + len(pieces[-1].text)],) if pieces else ()
