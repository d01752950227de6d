"""A configuration names no secret in clear text."""

from __future__ import annotations

import pytest

from lab.sops import AgeKey, encrypted
from rules.evidence.configuration import judge_configuration
from rules.finding import Result


def judge(tree):
    return judge_configuration(tree, name="app.toml")


@pytest.mark.parametrize(
    "tree",
    [
        {"password": "hunter2"},
        {"db": {"DB_PASSWORD": "hunter2"}},
        {"dbPassword": "hunter2"},
        {"api-key": "abc"},
        {"apiKey": "abc"},
        {"APIKey": "abc"},
        {"client_secret": "abc"},
        {"auth_token": "abc"},
        {"token": 12345},
        {"passwords": ["a"]},
        {"aws_secret_access_key": "abc"},
        {"url": "postgresql://app:hunter2@db/app"},
        {"notes": "x\n-----BEGIN OPENSSH PRIVATE KEY-----\nabc"},
        {"age": "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQ"},
        {"services": [{"environment": {"SECRET": "abc"}}]},
    ],
)
def test_a_secret_in_clear_text_is_found_and_not_shown(tree):
    found = judge(tree)
    assert found.result is Result.FAILED
    assert not any(word in found.evidence for word in ("hunter2", "abc", "12345", "QQQ"))


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"password": "", "token": None, "secret": False},
        {"password": "${DB_PASSWORD}"},
        {"password": "$DB_PASSWORD"},
        {"password": "{{ vault.db }}"},
        {"password": "/run/secrets/db"},
        {"password": "file:/run/secrets/db"},
        {"password": "<set in production>"},
        {"password_file": "db.txt", "token_env": "TOKEN"},
        {"max_tokens": 4096, "tokenizer": "bpe", "token_limit": 9, "n_tokens": 5},
        {"eos_token": "[EOS]", "pad_token": "<pad>"},
        {"secret_name": "db", "password_min_length": 12, "sort_key": "name"},
        {"url": "postgresql://app@db/app", "proxy": "http://app:${PASSWORD}@proxy"},
        {"password": encrypted({"a": "b"}, [AgeKey().recipient])["a"]},
    ],
)
def test_references_and_other_words_are_let_pass(tree):
    assert judge(tree).result is Result.PASSED


def test_each_place_is_named():
    found = judge({"a": [{"token": "x"}], "url": "amqp://u:p@h"})
    assert "a[0].token, url (in the value)" in found.evidence
