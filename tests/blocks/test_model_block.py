"""A model's block: what it hands on, and what it must not."""

from __future__ import annotations

import pytest

from blocks.sglang import ModelServer, SovereignModel
from rules.errors import InvalidRequestError
from rules.fleet import SystemdService


def a_block(**fields) -> SovereignModel:
    server = ModelServer(
        name="blue-1",
        root="/srv/chat/blue-1",
        url="http://127.0.0.1:30000/",
        service=SystemdService(unit="sglang-blue-1.service"),
    )
    return SovereignModel(servers=[server], **fields)


def test_a_server_is_asked_for_its_weight_version_and_whether_it_is_ready():
    (instance,) = a_block().fleet("chat").instances
    assert instance.probe.url == "http://127.0.0.1:30000/model_info"
    assert instance.probe.version_key == "weight_version"
    assert instance.probe.ready_url == "http://127.0.0.1:30000/ready"


def test_a_secret_among_the_flags_gets_into_no_fleet_and_so_into_no_journal():
    with pytest.raises(InvalidRequestError, match="are secrets") as raised:
        a_block(flags={"admin-api-key": "hunter2"}).fleet("chat")
    assert "hunter2" not in str(raised.value)


def test_a_model_without_a_key_and_with_flags_is_handed_on():
    serving = a_block(flags={"context-length": 8192}).fleet("chat").model_serving
    assert serving.flags == {"context-length": 8192}
    assert serving.admin_key_file is None
