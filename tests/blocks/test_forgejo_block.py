"""What people fill in for a forge."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from blocks.forgejo import Forgejo

FIELDS = {"url": "https://git.example.org", "owner": "team", "repository": "web"}


@pytest.mark.parametrize(
    "url", ["https://git.example.org", "https://git.example.org/", "http://127.0.0.1:3000/"]
)
def test_the_api_is_below_the_address(url):
    assert Forgejo(**{**FIELDS, "url": url}).api_url == f"{url.rstrip('/')}/api/v1/repos/team/web"


def test_a_forge_below_a_path_keeps_it():
    assert (
        Forgejo(**{**FIELDS, "url": "https://x.org/git/"}).api_url
        == "https://x.org/git/api/v1/repos/team/web"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "git.example.org"},
        {"url": "https://me:secret@git.example.org"},
        {"url": "https://git.example.org?x=1"},
        {"owner": "team/.."},
        {"owner": ".."},
        {"repository": "../other"},
        {"repository": ".."},
        {"repository": ""},
        {"timeout_s": 0},
    ],
)
def test_an_address_that_leads_elsewhere_is_refused(changed):
    with pytest.raises(ValidationError):
        Forgejo(**{**FIELDS, **changed})


def test_the_token_is_not_shown():
    block = Forgejo(**FIELDS, token=SecretStr("abc123"))
    assert "abc123" not in f"{block!r} {block} {block.model_dump()} {block.model_dump_json()}"
