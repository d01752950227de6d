"""Blocks that hold secrets: what is stored, what comes back, and what nobody may see."""

from __future__ import annotations

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from blocks.grafana import Grafana
from blocks.notifications import Notifications

SECRET = "t0psecret"  # noqa: S105 - what must not be seen
URLS = [f"slack://{SECRET}/b/c", f"jsons://user:{SECRET}@hooks.example.com/x"]


def test_notifications_come_back_from_prefect_and_are_hidden_there(prefect_api):
    Notifications(urls=[SecretStr(url) for url in URLS], timeout_s=7).save("team", overwrite=True)
    loaded = Notifications.load("team")
    assert [url.get_secret_value() for url in loaded.urls] == URLS
    assert loaded.timeout_s == 7
    assert SECRET not in shown(prefect_api.api_url, Notifications)


def test_a_grafana_comes_back_from_prefect_and_is_hidden_there(prefect_api):
    Grafana(url="http://127.0.0.1:3000", token=SecretStr(SECRET), dashboard_uid="web").save(
        "main", overwrite=True
    )
    loaded = Grafana.load("main")
    assert loaded.token is not None
    assert (loaded.token.get_secret_value(), loaded.dashboard_uid) == (SECRET, "web")
    assert SECRET not in shown(prefect_api.api_url, Grafana)


def shown(api_url: str, block: type) -> str:
    """Return what Prefect's API shows of all blocks of that type, as its UI asks for it."""
    with httpx.Client(trust_env=False, timeout=30) as http:
        answer = http.get(f"{api_url}/block_types/slug/{block.get_block_type_slug()}/block_documents")
    assert [one["name"] for one in answer.raise_for_status().json()]
    return answer.text


@pytest.mark.parametrize(
    "block",
    [Notifications(urls=[SecretStr(url) for url in URLS]), Grafana(token=SecretStr(SECRET))],
    ids=lambda block: type(block).__name__,
)
def test_no_secret_is_in_words_about_a_block(block):
    assert SECRET not in f"{block!r} {block} {block.model_dump()} {block.model_dump_json()}"


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://grafana", f"http://admin:{SECRET}@grafana"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ValidationError):
        Grafana(url=url)


@pytest.mark.parametrize("uid", ["", "a b", "../x", "x" * 41])
def test_a_dashboard_that_cannot_be_is_refused(uid):
    with pytest.raises(ValidationError):
        Grafana(dashboard_uid=uid)


@pytest.mark.parametrize("timeout_s", [0, -1, 1e9])
def test_a_timeout_is_neither_nothing_nor_for_ever(timeout_s):
    for block in (Grafana, Notifications):
        with pytest.raises(ValidationError):
            block(timeout_s=timeout_s)


@pytest.mark.parametrize("block", [Notifications, Grafana])
def test_every_field_of_these_forms_is_explained(block):
    assert all(field.description for field in block.model_fields.values())


@pytest.mark.parametrize(
    ("block", "name", "slug"),
    [
        (Notifications, "Sovereign Notifications", "sovereign-notifications"),
        (Grafana, "Sovereign Grafana", "sovereign-grafana"),
    ],
)
def test_these_blocks_are_known_by_their_own_names(block, name, slug):
    assert (block.get_block_type_name(), block.get_block_type_slug()) == (name, slug)
