"""Files of keys and values as trees: JSON, TOML, dotenv, INI. No error shows a value: it may be a secret."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from collections.abc import Iterator

from pydantic import JsonValue

#: A key twice hides one of its values from every reader but a person's.
_TWICE = "key {} stands there twice"
_HEADLESS = "DEFAULT"
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=(.*)", re.DOTALL)

#: Keys of maps, and indices of lists.
Path = tuple[str | int, ...]


def leaves(tree: object) -> Iterator[tuple[Path, object]]:
    """Yield each value that is no map and no list, with the keys that lead to it; a list adds its indices.

    A part that stands there twice (a YAML alias) is walked once, so also one that contains itself ends.
    """
    seen: set[int] = set()
    waiting: list[tuple[Path, object]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        if not isinstance(node, (dict, list)):
            yield path, node
        elif id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, dict):
                inside = [((*path, str(key)), value) for key, value in node.items()]
            else:
                inside = [((*path, index), value) for index, value in enumerate(node)]
            waiting += reversed(inside)


def spelled(path: Path) -> str:
    """Return a path as people write it: `tokens[0].name`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def parse_json(text: str) -> JsonValue:
    """Return a JSON document.

    Raises:
        ValueError: it is none, or has a key twice.
    """
    tree: JsonValue = json.loads(text, object_pairs_hook=_once)
    return tree


def parse_toml(text: str) -> JsonValue:
    """Return a TOML document; times are words.

    Raises:
        ValueError: it is none.
    """
    tree: JsonValue = json.loads(json.dumps(tomllib.loads(text), default=str))
    return tree


def parse_dotenv(text: str) -> dict[str, str]:
    r"""Return the variables of a dotenv file, without their quotes; `\n` in a value is the end of a line.

    Raises:
        ValueError: a line is neither that, nor blank, nor a comment; or a key stands there twice.
    """
    variables: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line.strip())
        if not match:
            raise ValueError(f"line {number} is not KEY=value")
        if match[1] in variables:
            raise ValueError(_TWICE.format(match[1]))
        variables[match[1]] = _unquoted(match[2].strip())
    return variables


def parse_ini(text: str) -> dict[str, dict[str, str]]:
    """Return the sections of an INI file; keys before the first section are in DEFAULT.

    Raises:
        ValueError: it is no INI file, or has a section or a key twice.
    """
    # no section is special, so that none leaks its keys into the others
    parser = configparser.RawConfigParser(default_section="\0", strict=True)
    parser.optionxform = str  # type: ignore[method-assign, assignment]  # keys are taken as they are written
    significant = (line for line in text.splitlines() if line.strip() and line.strip()[0] not in "#;")
    if not next(significant, "[").lstrip().startswith("["):
        text = f"[{_HEADLESS}]\n{text}"
    try:
        parser.read_string(text)
    except configparser.DuplicateOptionError as error:
        raise ValueError(_TWICE.format(f"{error.section}.{error.option}")) from None
    except configparser.Error as error:
        # its text quotes the line
        raise ValueError(f"no INI file: {type(error).__name__}") from None
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    tree: dict[str, JsonValue] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(_TWICE.format(key))
        tree[key] = value
    return tree


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return value.replace("\\n", "\n")
