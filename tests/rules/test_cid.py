"""What CIDs say of themselves, and which options keep their kind."""

from __future__ import annotations

import base64

import pytest

from rules.cid import Kind, kind, options_that_keep
from rules.ipfs import AddOptions

V0 = "QmRLUf2cuYkWHpoYSyfJjcjjWLZDfXpZSqAg65CowHG5Tm"
OTHER_V0 = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
#: Of the empty directory, in version 1.
NODE = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
RAW = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def made(codec, hash_code):
    content = bytes([1, codec]) + hash_code + bytes([32]) + bytes(32)
    return "b" + base64.b32encode(content).decode().lower().rstrip("=")


BLAKE2B = made(0x70, bytes([0xA0, 0xE4, 0x02]))


@pytest.mark.parametrize(
    ("cid", "expected"),
    [
        (V0, Kind(0, 0x70, 0x12)),
        (NODE, Kind(1, 0x70, 0x12)),
        (RAW, Kind(1, 0x55, 0x12)),
        (BLAKE2B, Kind(1, 0x70, 0xB220)),
        (made(0x55, b"\x1b"), Kind(1, 0x55, 0x1B)),
        ("b" + "a" * 24, None),  # version 0 in base32
        ("bae", None),  # torn after its version
        ("b", None),
        ("b777777777", None),
    ],
)
def test_a_cid_says_its_version_codec_and_hash(cid, expected):
    assert kind(cid) == expected


@pytest.mark.parametrize(
    ("old", "new", "options"),
    [
        (V0, OTHER_V0, AddOptions()),
        (NODE, NODE, AddOptions(cid_version=1)),
        (RAW, RAW, AddOptions(cid_version=1, raw_leaves=True)),
        # a file that grew beyond one block, and one that shrank to one
        (RAW, NODE, AddOptions(cid_version=1, raw_leaves=True)),
        (NODE, RAW, AddOptions(cid_version=1, raw_leaves=True)),
    ],
)
def test_cids_of_the_same_kind_need_no_other_options(old, new, options):
    assert options_that_keep(old, new, options) is None


@pytest.mark.parametrize(
    ("old", "new", "options", "keeping"),
    [
        (V0, NODE, AddOptions(cid_version=1), AddOptions()),
        (V0, RAW, AddOptions(cid_version=1, raw_leaves=True), AddOptions()),
        (V0, RAW, AddOptions(raw_leaves=True), AddOptions()),  # as Kubo does with a file of one block
        (NODE, V0, AddOptions(), AddOptions(cid_version=1)),
        (RAW, V0, AddOptions(), AddOptions(cid_version=1, raw_leaves=True)),
        (RAW, NODE, AddOptions(cid_version=1), AddOptions(cid_version=1, raw_leaves=True)),
        (BLAKE2B, NODE, AddOptions(cid_version=1), AddOptions(cid_version=1, hash="blake2b-256")),
        (made(0x70, b"\x0f"), NODE, AddOptions(cid_version=1), AddOptions(cid_version=1, hash="0xf")),
    ],
)
def test_options_that_keep_the_kind_are_known(old, new, options, keeping):
    assert options_that_keep(old, new, options) == keeping


def test_the_way_of_cutting_is_kept():
    options = AddOptions(cid_version=1, chunker="size-1048576")
    kept = options_that_keep(V0, NODE, options)
    assert kept is not None
    assert kept.chunker == "size-1048576"


def test_of_what_is_no_cid_nothing_is_said():
    assert options_that_keep("b" + "a" * 24, V0, AddOptions()) is None
