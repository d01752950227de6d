"""Migrations that hold secrets are refused, and the refusal does not show them."""

from __future__ import annotations

import pytest

from rules.errors import InvalidRequestError
from tasks.migration_refusals import refuse_unfit

SECRET = "sesame-0815"  # noqa: S105 - shows whether it is shown
HOLD_SECRETS = [
    f"CREATE ROLE x LOGIN PASSWORD '{SECRET}'",
    f"create role x with login encrypted password '{SECRET}'",
    f"/* x */ CREATE USER x PASSWORD\n'{SECRET}'",
    f"CREATE GROUP x PASSWORD E'{SECRET}'",
    f"ALTER ROLE x PASSWORD $${SECRET}$$",
    f"ALTER ROLE x PASSWORD U&'{SECRET}'",
    f"ALTER USER x VALID UNTIL 'infinity' PASSWORD '{SECRET}'",
    f"ALTER GROUP x PASSWORD $a${SECRET}$a$",
    f"CREATE USER MAPPING FOR x SERVER s OPTIONS (user 'x', password '{SECRET}')",
    f"CREATE USER MAPPING IF NOT EXISTS FOR x SERVER s OPTIONS (\"password\" '{SECRET}')",
    f"ALTER USER MAPPING FOR x SERVER s OPTIONS (SET password '{SECRET}')",
    f"CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (password '{SECRET}')",
    f"CREATE SUBSCRIPTION s CONNECTION 'host=h password={SECRET}' PUBLICATION p",
    f"ALTER SUBSCRIPTION s CONNECTION 'host=h password={SECRET}'",
    f"DO $$ BEGIN CREATE ROLE x LOGIN PASSWORD '{SECRET}'; END $$",
    f"DO LANGUAGE plpgsql 'BEGIN EXECUTE ''ALTER ROLE x PASSWORD {SECRET}''; END'",
    f"DO $$ BEGIN EXECUTE format('CREATE USER %I PASSWORD %L', 'x', '{SECRET}'); END $$",
]
HOLD_NONE = [
    "CREATE ROLE x LOGIN",
    "ALTER ROLE x PASSWORD NULL",
    "ALTER ROLE x SET password_encryption = 'scram-sha-256'",
    "CREATE ROLE password_keepers",
    "CREATE USER MAPPING FOR x SERVER s",
    "ALTER SUBSCRIPTION s DISABLE",
    "ALTER TABLE users ADD COLUMN password text",
    "COMMENT ON TABLE users IS 'CREATE ROLE x PASSWORD y'",
    "DO $$ BEGIN CREATE ROLE x LOGIN; ALTER TABLE t ADD password text; END $$",
    "DO $$ BEGIN ALTER ROLE x PASSWORD NULL; END $$",
]


@pytest.mark.parametrize("statement", HOLD_SECRETS)
@pytest.mark.parametrize("is_transactional", [True, False])
def test_a_secret_is_refused_and_not_shown(statement, is_transactional):
    with pytest.raises(
        InvalidRequestError, match=r"made outside of migrations.*Nothing was touched"
    ) as caught:
        refuse_unfit(("ANALYZE t", statement), where="migration a", is_transactional=is_transactional)
    assert str(caught.value).startswith("migration a: `")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("statement", HOLD_NONE)
def test_what_holds_none_may_stand(statement):
    refuse_unfit((statement,), where="migration a", is_transactional=True)


def test_a_statement_that_is_refused_for_another_reason_is_shown_up_to_its_first_value():
    with pytest.raises(InvalidRequestError, match=r"`PREPARE TRANSACTION…` is refused") as caught:
        refuse_unfit((f"PREPARE TRANSACTION '{SECRET}'",), where="migration a", is_transactional=True)
    assert SECRET not in str(caught.value)
