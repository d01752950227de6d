"""Files in the format of sops, for age recipients, made and opened without sops."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]
import yaml
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from lab.processes import LabError

_VERSION = "3.12.0"
_KEY_BYTES = _IV_BYTES = 32
_SUFFIX = "_unencrypted"
_ENCRYPTED = re.compile(r"ENC\[AES256_GCM,data:(.*),iv:(.*),tag:(.*),type:(.*)\]")
_READ: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: text == "True",
}

Tree = dict[str, Any]


class AgeKey:
    """An age key pair."""

    def __init__(self) -> None:
        self.identity = pyrage.x25519.Identity.generate()
        self.recipient = str(self.identity.to_public())


def encrypted(tree: Tree, recipients: Sequence[str], *, suffix: str = _SUFFIX) -> Tree:
    """Return `tree` with each value encrypted whose keys do not end in `suffix`, and with sops metadata."""
    key, digest = secrets.token_bytes(_KEY_BYTES), hashlib.sha512()
    hidden = _map_leaves(tree, lambda path, value: _hide(value, key, path, digest=digest, suffix=suffix))
    modified = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {
        "age": [{"recipient": name, "enc": _for_recipient(key, name)} for name in recipients],
        "lastmodified": modified,
        "mac": _encrypt(digest.hexdigest().upper(), key, modified),
        "unencrypted_suffix": suffix,
        "version": _VERSION,
    }
    return {**hidden, "sops": metadata}


def decrypted(tree: Tree, key: AgeKey) -> Tree:
    """Return what an encrypted tree holds, its checksum verified.

    Raises:
        LabError: the key is not among its recipients, or something was changed since.
    """
    metadata = tree["sops"]
    held = [age["enc"] for age in metadata["age"] if age["recipient"] == key.recipient]
    if not held:
        raise LabError(f"it is not encrypted for {key.recipient}")
    data_key, digest = pyrage.decrypt(held[0].encode(), [key.identity]), hashlib.sha512()
    values = {name: value for name, value in tree.items() if name != "sops"}
    plain: Tree = _map_leaves(values, lambda path, value: _show(value, data_key, path, digest=digest))
    if _decrypt(metadata["mac"], data_key, metadata["lastmodified"]) != digest.hexdigest().upper():
        raise LabError("its checksum does not hold: a value was added, changed or taken away by hand")
    return plain


def write_sops(path: Path, tree: Tree, recipients: Sequence[str], *, suffix: str = _SUFFIX) -> Path:
    """Write an encrypted file in the format of its name: `.yaml`, `.json`, `.env` or `.ini`."""
    path.write_text(_spelled(encrypted(tree, recipients, suffix=suffix), path.suffix))
    return path


def leak(path: Path, keys: Sequence[str | int], value: object) -> None:
    """Put a clear value into a written YAML or JSON file, as somebody does by hand: sops is not asked."""
    tree = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    node = tree
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(_spelled(tree, path.suffix))


def _spelled(tree: Tree, suffix: str) -> str:
    match suffix:
        case ".yaml" | ".yml":
            return yaml.safe_dump(tree, sort_keys=False, width=1_000_000)
        case ".json":
            return json.dumps(tree, indent="\t")
        case ".env":
            flat = {**{k: v for k, v in tree.items() if k != "sops"}, **_flat(tree["sops"], "sops_")}
            return "".join(f"{key}={_one_line(value)}\n" for key, value in flat.items())
        case ".ini":
            sections = {**{k: v for k, v in tree.items() if k != "sops"}, "sops": _flat(tree["sops"], "")}
            return "".join(
                f"[{name}]\n" + "".join(f"{key} = {_one_line(value)}\n" for key, value in rows.items()) + "\n"
                for name, rows in sections.items()
            )
        case _:
            raise LabError(f"no format is known for {suffix}")


def _one_line(value: object) -> str:
    return str(value).replace("\n", "\\n")


def _flat(node: object, prefix: str) -> dict[str, object]:
    """Return a tree's leaves under names such as `sops_age__list_0__map_enc`."""
    if isinstance(node, dict):
        step = "__map_" if prefix not in {"", "sops_"} else ""
        rows = [_flat(value, f"{prefix}{step}{key}") for key, value in node.items()]
    elif isinstance(node, list):
        rows = [_flat(value, f"{prefix}__list_{index}") for index, value in enumerate(node)]
    else:
        return {prefix: node}
    return {name: value for row in rows for name, value in row.items()}


def _map_leaves(node: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    if isinstance(node, dict):
        return {key: _map_leaves(value, change, f"{path}{key}:") for key, value in node.items()}
    if isinstance(node, list):  # a list's items have the path of the list
        return [_map_leaves(value, change, path) for value in node]
    return change(path, node)


def _hide(value: Any, key: bytes, path: str, *, digest: Any, suffix: str) -> Any:
    if value is None:
        return None
    digest.update(str(value).encode())
    is_clear = any(step.endswith(suffix) for step in path.split(":"))
    return value if is_clear or value == "" else _encrypt(value, key, path)


def _show(value: Any, key: bytes, path: str, *, digest: Any) -> Any:
    plain = _decrypt(value, key, path) if _ENCRYPTED.fullmatch(str(value)) else value
    if plain is not None:
        digest.update(str(plain).encode())
    return plain


def _encrypt(value: Any, key: bytes, path: str) -> str:
    iv = secrets.token_bytes(_IV_BYTES)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(path.encode())
    data = encryptor.update(str(value).encode()) + encryptor.finalize()
    parts = (base64.b64encode(part).decode() for part in (data, iv, encryptor.tag))
    return "ENC[AES256_GCM,data:{},iv:{},tag:{},type:{}]".format(*parts, type(value).__name__)


def _decrypt(text: str, key: bytes, path: str) -> Any:
    match = _ENCRYPTED.fullmatch(text)
    if not match:
        raise LabError("a value that should be encrypted is not")
    data, iv, tag = (base64.b64decode(part) for part in match.groups()[:3])
    decryptor = Cipher(algorithms.AES(key), modes.GCM(iv, tag)).decryptor()
    decryptor.authenticate_additional_data(path.encode())
    try:
        plain = decryptor.update(data) + decryptor.finalize()
    except InvalidTag as error:
        raise LabError("a value was changed, or moved to another key") from error
    return _READ[match[4]](plain.decode())


def _for_recipient(key: bytes, recipient: str) -> str:
    armoured = pyrage.encrypt(key, [pyrage.x25519.Recipient.from_str(recipient)], armored=True)
    return armoured.decode() if isinstance(armoured, bytes) else str(armoured)
