"""PostgreSQL's lexical rules: which part of a text is a word, a string, a body or a comment.

`standard_conforming_strings` is taken to be on, which is its default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# every character beyond ASCII is a letter to the server, also those that Python takes for spaces
_LETTER = r"[A-Za-z_\x80-\U0010FFFF]"
_NEWLINE_BETWEEN = r"(?>(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*+)*+)"
_ESCAPED_BODY = r"'(?:[^'\\]|''|\\.)*+'"
_TOKEN = re.compile(
    rf"""
      (?P<space>[ \t\n\r\f\v]+)
    | (?P<comment>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]{_ESCAPED_BODY}(?:{_NEWLINE_BETWEEN}{_ESCAPED_BODY})*+)
    | (?P<string>'(?:[^']|'')*+')
    | (?P<quoted>"(?:[^"]|"")*+")
    | (?P<unclosed>[eE]'|['"])
    | (?P<dollar>\$(?:{_LETTER}(?:{_LETTER}|[0-9])*)?\$)
    | (?P<word>{_LETTER}(?:{_LETTER}|[0-9$])*)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    | (?P<symbol>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


class Token(NamedTuple):
    """A piece of SQL; `kind` is a group's name of the lexer, and a body between dollars is `dollar`."""

    kind: str
    text: str
    start: int


def tokens(sql: str) -> Iterator[Token]:
    """Yield all of `sql`, piece by piece, spaces and comments too.

    Raises:
        ValueError: a quote, a body or a comment is not closed.
    """
    position = 0
    while match := _TOKEN.match(sql, position):
        kind, end = str(match.lastgroup), match.end()
        if kind == "block":
            kind, end = "comment", _comment_end(sql, position)
        elif kind == "dollar":
            end = _body_end(sql, match)
        elif kind == "unclosed":
            raise ValueError(f"line {line_of(sql, position)}: the quote {match.group()[-1]} is not closed")
        yield Token(kind, sql[position:end], position)
        position = end


def _comment_end(sql: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    raise ValueError(f"line {line_of(sql, start)}: the comment /* is not closed")


def _body_end(sql: str, mark: re.Match[str]) -> int:
    closed = sql.find(mark.group(), mark.end())
    if closed < 0:
        raise ValueError(f"line {line_of(sql, mark.start())}: the body after {mark.group()} is not closed")
    return closed + len(mark.group())


def line_of(sql: str, position: int) -> int:
    """Return the line, counted from 1, of a character counted from 0."""
    return sql.count("\n", 0, position) + 1
