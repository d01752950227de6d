"""Is a file encrypted with sops, every value of it, for the right recipients? Told without any key.

What sops itself says of a file rests on its metadata alone, so a value that was added by hand in clear text
passes there. Here each leaf must be encrypted, or be exempt by the rules that the metadata name. The checksum
over all values (`mac`) is there, but only a key can verify it. Comments are no leaves and are not looked at.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping

from pydantic import Field

from rules.evidence.foreign import Foreign
from rules.evidence.tree import Path, leaves, spelled
from rules.finding import Finding
from rules.words import listed

_ENCRYPTED = re.compile(
    r"ENC\[AES256_GCM,data:([A-Za-z0-9+/=]*),iv:([A-Za-z0-9+/=]+),tag:([A-Za-z0-9+/=]+),"
    r"type:(?:str|int|float|bool|bytes|comment|time)\]"
)
_IV_BYTES, _TAG_BYTES = 32, 16
_ARMOUR = "-----BEGIN AGE ENCRYPTED FILE-----"
_FLAT_PREFIX = "sops_"
_FLAT_STEP = re.compile(r"__(list|map)_")
_DEFAULT_SUFFIX = "_unencrypted"


class _Age(Foreign):
    recipient: str
    enc: str


class _KeyGroup(Foreign):
    age: tuple[_Age, ...] | None = None
    pgp: tuple[object, ...] | None = None
    kms: tuple[object, ...] | None = None
    gcp_kms: tuple[object, ...] | None = None
    azure_kv: tuple[object, ...] | None = None
    hc_vault: tuple[object, ...] | None = None
    hckms: tuple[object, ...] | None = None

    @property
    def others(self) -> int:
        """How many keys it has that are not age's."""
        every = (self.pgp, self.kms, self.gcp_kms, self.azure_kv, self.hc_vault, self.hckms)
        return sum(len(keys or ()) for keys in every)


class _Metadata(_KeyGroup):
    version: str = Field(min_length=1)
    lastmodified: str = Field(min_length=1)
    mac: str = Field(min_length=1)
    key_groups: tuple[_KeyGroup, ...] | None = None
    unencrypted_suffix: str | None = None
    encrypted_suffix: str | None = None
    unencrypted_regex: str | None = None
    encrypted_regex: str | None = None
    unencrypted_comment_regex: str | None = None
    encrypted_comment_regex: str | None = None
    # known, and of no interest here; a name that is not known could be a secret's
    shamir_threshold: object = None
    mac_only_encrypted: object = None


def judge_sops(tree: object, *, name: str, recipients: Iterable[str] = ()) -> Finding:
    """Return whether every value of `tree` is encrypted, for each of the age `recipients`.

    Args:
        tree: the parsed file: JSON or YAML as it is, dotenv and INI flat as their parsers return them.
        name: what to call it in words.
        recipients: age recipients that must be able to decrypt it; none: any key at all suffices.

    The words name the paths of clear values, never a value.
    """
    if not isinstance(tree, Mapping) or (parts := _parts(tree)) is None:
        return Finding.failed(f"{name} has no sops metadata: it is plain text.")
    values, data = parts
    try:
        metadata = _Metadata.model_validate(data)
        rules = _Rules(metadata)
    except (ValueError, re.error):
        return Finding.failed(f"{name} has sops metadata that are not complete or not valid.")
    if metadata.unencrypted_comment_regex or metadata.encrypted_comment_regex:
        return Finding.unknown(f"{name} exempts values by their comments, which cannot be told here.")
    problems = [*_of_metadata(metadata, data, tuple(recipients)), *_clear(values, rules)]
    if problems:
        return Finding.failed(f"{name}: {listed(problems, shown=8)}.")
    encrypted = sum(is_encrypted(value) for _, value in leaves(values))
    exempt = sum(bool(value) for _, value in leaves(values)) - encrypted
    if not encrypted:
        return Finding.failed(f"{name} holds no encrypted value: all {exempt} are exempt by its own rules.")
    return Finding.passed(
        f"{name}: {encrypted} values are encrypted for {_keys(metadata)}, {exempt} are exempt by its rules, "
        f"none is clear; last modified {metadata.lastmodified[:40]}."
    )


def is_encrypted(value: object) -> bool:
    """Return whether a value has the form in which sops writes an encrypted one."""
    match = _ENCRYPTED.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return False
    try:
        _, iv, tag = (base64.b64decode(part, validate=True) for part in match.groups())
    except (binascii.Error, ValueError):
        return False
    return len(iv) == _IV_BYTES and len(tag) == _TAG_BYTES


class _Rules:
    """Which paths a file's own metadata exempt from encryption. The later rule wins, as in sops."""

    def __init__(self, metadata: _Metadata) -> None:
        given = (
            metadata.unencrypted_suffix,
            metadata.encrypted_suffix,
            metadata.unencrypted_regex,
            metadata.encrypted_regex,
        )
        clear_end, secret_end, clear, secret = given
        if not any(given):
            clear_end = _DEFAULT_SUFFIX
        self._clear_end, self._secret_end = clear_end, secret_end
        self._clear = re.compile(clear) if clear else None
        self._secret = re.compile(secret) if secret else None

    def exempts(self, path: Path) -> bool:
        """Return whether the value at `path` may be clear."""
        keys = [key for key in path if isinstance(key, str)]  # sops gives a list's items the path of the list
        secret = True
        if self._clear_end and any(key.endswith(self._clear_end) for key in keys):
            secret = False
        if self._secret_end:
            secret = any(key.endswith(self._secret_end) for key in keys)
        if self._clear and any(self._clear.search(key) for key in keys):
            secret = False
        if self._secret:
            secret = any(self._secret.search(key) for key in keys)
        return not secret


def _parts(tree: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]] | None:
    """Return the values and the metadata of a file, or None where it has no metadata."""
    if isinstance(nested := tree.get("sops"), Mapping):
        values = {str(key): value for key, value in tree.items() if key != "sops"}
        # INI has one level only, so its section is flat
        named = {str(key): value for key, value in nested.items()}
        is_flat = all(isinstance(value, str) for value in named.values())
        return values, _unflattened(named.items()) if is_flat else named
    flat_rows = [
        (k.removeprefix(_FLAT_PREFIX), v) for k, v in tree.items() if str(k).startswith(_FLAT_PREFIX)
    ]
    if not flat_rows:
        return None
    return {k: v for k, v in tree.items() if not str(k).startswith(_FLAT_PREFIX)}, _unflattened(flat_rows)


def _unflattened(rows: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Return the tree behind keys such as `age__list_0__map_enc`."""
    tree: dict[str, object] = {}
    for key, value in rows:
        first, *steps = _FLAT_STEP.split(key)
        names = [first, *steps[1::2]]
        node = tree
        for name in names[:-1]:
            deeper = node.setdefault(name, {})
            if not isinstance(deeper, dict):
                break
            node = deeper
        node[names[-1]] = value.replace("\\n", "\n") if isinstance(value, str) else value
    return {key: _listed_parts(value) for key, value in tree.items()}


def _listed_parts(node: object) -> object:
    if not isinstance(node, dict):
        return node
    parts = {key: _listed_parts(value) for key, value in node.items()}
    numbered = bool(parts) and all(key.isdigit() for key in parts)
    return [parts[key] for key in sorted(parts, key=int)] if numbered else parts


def _of_metadata(metadata: _Metadata, data: Mapping[str, object], wanted: tuple[str, ...]) -> Iterator[str]:
    if not is_encrypted(metadata.mac):
        yield "sops.mac is not encrypted"
    for unknown in sorted(set(data) - set(_Metadata.model_fields)):
        yield f"sops.{unknown} is no metadata of sops: a clear value"
    held = {age.recipient for age in _ages(metadata) if age.enc.lstrip().startswith(_ARMOUR)}
    if not held and not _others(metadata):
        yield "it is encrypted for nobody"
    for recipient in wanted:
        if recipient not in held:
            yield f"it is not encrypted for {recipient}"


def _clear(values: Mapping[str, object], rules: _Rules) -> Iterator[str]:
    for path, value in leaves(values):
        # sops leaves what is empty as it is
        empty = value is None or value == ""
        if not empty and not is_encrypted(value) and not rules.exempts(path):
            yield f"{spelled(path)} is clear"


def _ages(metadata: _Metadata) -> list[_Age]:
    return [age for group in (metadata, *(metadata.key_groups or ())) for age in group.age or ()]


def _others(metadata: _Metadata) -> int:
    return sum(group.others for group in (metadata, *(metadata.key_groups or ())))


def _keys(metadata: _Metadata) -> str:
    others = f" and {_others(metadata)} other keys" if _others(metadata) else ""
    return f"{len({age.recipient for age in _ages(metadata)})} age recipients{others}"
