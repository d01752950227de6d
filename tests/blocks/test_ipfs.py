"""The block of content in IPFS: what it hands on, and what it refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from blocks.database import SovereignDatabase
from blocks.ipfs import KuboNode, SovereignIpfsContent, load_content
from rules.database import DatabaseAddress
from rules.ipfs import AddOptions, ContentReferences, IpfsContent, IpfsNode


def a_block(**fields) -> SovereignIpfsContent:
    known = {
        "nodes": [
            KuboNode(name="one", api="http://127.0.0.1:5001"),
            KuboNode(name="two", api="http://two:5001", token_file="/keys/two", swarm="/dns4/two/tcp/4001"),
        ],
        "database": "main",
        "table": "public.memories",
        "cid_column": "content",
    }
    return SovereignIpfsContent(**{**known, **fields})


def test_all_fields_are_handed_on():
    options = AddOptions(cid_version=1, raw_leaves=True)
    block = a_block(replicas=1, key_column="name", options=options, pin_s=5, fetch_s=6, max_used_ratio=0.5)
    assert block.content("memories") == IpfsContent(
        name="memories",
        nodes=(
            IpfsNode(name="one", api="http://127.0.0.1:5001"),
            IpfsNode(name="two", api="http://two:5001", token_file="/keys/two", swarm="/dns4/two/tcp/4001"),
        ),
        replicas=1,
        references=ContentReferences(table="public.memories", key="name", cid="content"),
        options=options,
        pin_s=5,
        fetch_s=6,
        max_used_ratio=0.5,
    )


def test_what_is_left_out_is_as_the_rules_have_it():
    made = a_block().content("memories")
    fields = made.model_dump(include={"name", "nodes", "references"})
    assert made == IpfsContent.model_validate(fields)
    assert made.references.key == "id"


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": []},
        {"nodes": [KuboNode(name="one", api="http://me:secret@one:5001")]},
        {"nodes": [KuboNode(name="one", api="http://one", token_file="keys/one")]},
        {"nodes": [KuboNode(name="one", api="http://one", swarm="one:4001")]},
        {"nodes": [KuboNode(name="one", api="http://one"), KuboNode(name="one", api="http://two")]},
        {"table": "memories"},
        {"cid_column": "the content"},
        {"replicas": 0},
        {"max_used_ratio": 90},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's and ours alike
        a_block(**wrong).content("memories")


def test_a_nodes_field_that_is_not_known_is_refused():
    with pytest.raises(ValidationError):
        KuboNode(name="one", api="http://one", token="t")


def test_it_is_loaded_together_with_its_database(prefect_api):
    SovereignDatabase(address=DatabaseAddress(database="memory")).save("ipfs-test", overwrite=True)
    a_block(database="ipfs-test").save("ipfs-test", overwrite=True)
    content, database = load_content("ipfs-test")
    assert content == a_block().content("ipfs-test")
    assert (database.name, database.address.database) == ("ipfs-test", "memory")
    a_block(database="ipfs-none").save("ipfs-test", overwrite=True)
    with pytest.raises(ValueError, match="ipfs-none"):
        load_content("ipfs-test")


@pytest.mark.parametrize("form", [SovereignIpfsContent, KuboNode])
def test_every_field_of_the_form_is_explained(form):
    assert all(field.description for field in form.model_fields.values())


def test_the_block_is_known_by_its_own_name():
    assert SovereignIpfsContent.get_block_type_name() == "Sovereign IPFS Content"
    assert SovereignIpfsContent.get_block_type_slug() == "sovereign-ipfs-content"
    assert SovereignIpfsContent.get_description()
