"""Does a configuration name a secret in clear text?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rules.evidence.sops import is_encrypted
from rules.evidence.tree import leaves, spelled
from rules.finding import Finding
from rules.words import listed

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
#: What the last words of a key must be; `max_tokens`, `tokenizer` and `token_limit` are no secrets.
_SECRET_ENDS = (
    ("password",),
    ("passwords",),
    ("passwd",),
    ("passphrase",),
    ("pwd",),
    ("secret",),
    ("secrets",),
    ("token",),
    ("credential",),
    ("credentials",),
    ("apikey",),
    ("api", "key"),
    ("api", "keys"),
    ("api", "tokens"),
    ("access", "tokens"),
    ("access", "key"),
    ("private", "key"),
    ("secret", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("auth", "key"),
)
#: A language model's own tokens.
_MODEL_TOKENS = frozenset({"bos", "cls", "eos", "image", "mask", "pad", "sep", "special", "stop", "unk"})
#: What says where a secret is, and is none: `${X}`, `$X`, `{{ x }}`, `file:…`, a path, `<placeholder>`.
_REFERENCE = re.compile(
    r"\$\{[^}]+\}|\$[A-Za-z_][A-Za-z0-9_]*|\$\([^)]+\)|\{\{.*\}\}|%\([^)]+\)s|<[^<>]+>|\*+"
    r"|(?:env|file|vault|op|sops|ref|secretRef|credential)(?::|://).+|(?:/[^/\s]+){2,}",
    re.DOTALL,
)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_KEY_MATERIAL = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|AGE-SECRET-KEY-1[0-9A-Z]{20}")


def judge_configuration(tree: object, *, name: str) -> Finding:
    """Return whether the parsed configuration `tree` is free of secrets in clear text.

    A secret is a value that is not empty, under a key that ends like `password`, `token` or `api_key`; a
    password in a URL; or a private key anywhere. A reference to where it is kept is none. The words name the
    paths, never the values.
    """
    found = list(_secrets(tree))
    if found:
        return Finding.failed(f"{name} holds secrets in clear text: {listed(found, shown=8)}.")
    return Finding.passed(f"{name} is well-formed, its {sum(1 for _ in leaves(tree))} values hold no secret.")


def _secrets(tree: object) -> Iterator[str]:
    for path, value in leaves(tree):
        if value is None or isinstance(value, bool) or _is_reference(str(value)):
            continue
        key = next((step for step in reversed(path) if isinstance(step, str)), "")
        if _names_a_secret(key):
            yield spelled(path)
        elif isinstance(value, str) and _holds_a_secret(value):
            yield f"{spelled(path) or 'the file'} (in the value)"


def _names_a_secret(key: str) -> bool:
    words = tuple(word.lower() for word in _WORDS.findall(key))
    if words[-1:] == ("token",) and _MODEL_TOKENS.intersection(words[-2:-1]):
        return False
    return any(words[-len(end) :] == end for end in _SECRET_ENDS)


def _holds_a_secret(value: str) -> bool:
    passwords = (match[1] for match in _URL_PASSWORD.finditer(value))
    return bool(_KEY_MATERIAL.search(value)) or any(not _is_reference(password) for password in passwords)


def _is_reference(value: str) -> bool:
    text = value.strip()
    return not text or bool(_REFERENCE.fullmatch(text)) or is_encrypted(text)
