"""The names of a flake's inputs, read from flake.nix without Nix."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Strings may hold all the rest, so they are matched together with it, and first.
_TOKEN = re.compile(
    r"""
    "(?:[^"\\]|\\.)*"            # a string
    | ''(?:[^']|'(?!')|''['$\\])*''  # an indented string
    | \#[^\n]*                   # a comment
    | /\*.*?(?:\*/|\Z)
    | [A-Za-z_][A-Za-z0-9_'-]*   # a name
    | [{}()\[\]=.;]
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN, _CLOSE = frozenset({"{", "(", "[", "let"}), frozenset({"}", ")", "]", "in"})

_Attributes = tuple[str, ...]
#: The base of what stands in no plain set: in a list, in parentheses, in the arguments of a function.
_ELSEWHERE = ("",)


def flake_inputs(text: str) -> frozenset[str]:
    """Return the names of the inputs that a flake.nix declares, as `inputs.x.url` or in an `inputs` set.

    Raises:
        ValueError: its brackets do not close, or an input's name is computed.
    """
    names = set()
    for attributes in _assigned(text):
        if attributes[0] == "inputs" and len(attributes) > 1:
            if "${" in attributes[1]:
                raise ValueError("the name of an input is computed")
            names.add(attributes[1].strip('"'))
    return frozenset(names)


def _assigned(text: str) -> Iterator[_Attributes]:
    """Yield the full path of each attribute that is given a value."""
    bases: list[
        tuple[_Attributes, _Attributes]
    ] = []  # of each open bracket: its base, and what it is given to
    names: _Attributes = ()
    has_value = False
    for word in (match[0] for match in _TOKEN.finditer(text)):
        base = bases[-1][0] if bases else ()
        if word in _OPEN:
            is_plain = word == "{" and (has_value or not bases)
            bases.append(((*base, *names) if is_plain else _ELSEWHERE, names))
            names, has_value = (), False
        elif word in _CLOSE:
            if not bases:
                raise ValueError("a bracket closes that was not opened")
            names, has_value = bases.pop()[1], True
        elif word == ";":
            names, has_value = (), False
        elif word == "=":
            has_value = True
            yield (*base, *names)
        elif not has_value and word != "." and not word.startswith(("#", "/*")):
            names = (*names, word)
    if bases:
        raise ValueError("a bracket is not closed")
