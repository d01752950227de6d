"""Which statements no migration may hold, because its executor could not keep its promises with them."""

from __future__ import annotations

import re

from rules.errors import InvalidRequestError
from tasks.blockers import without_values
from tasks.sql_statements import shape

#: The first line of an up file whose statements run one by one, each in its own transaction.
NO_TRANSACTION = "-- sovereign: no-transaction"

_TIMEOUTS = "(?:LOCK|STATEMENT|TRANSACTION|IDLE_IN_TRANSACTION_SESSION)_TIMEOUT"
_IRREVOCABLE = (
    r"(?:CREATE|DROP) (?:DATABASE|TABLESPACE|SUBSCRIPTION)\b|ALTER SYSTEM\b"
    r"|.*\bDETACH PARTITION\b.*\bCONCURRENTLY\b"
)
_SECRETS = (
    r"(?:CREATE|ALTER) (?:ROLE|USER|GROUP)\b.*\bPASSWORD (?!NULL\b)"
    r"|(?:CREATE|ALTER) USER MAPPING\b.*\bOPTIONS\b"
    r"|(?:CREATE|ALTER) SUBSCRIPTION\b.*\bCONNECTION\b"
    r"|.*\bOPTIONS \(.*\bPASSWORD ''"
)
# A block has no parameters: a password that it gives stands in it.
_SECRET_IN_BLOCK = re.compile(
    r"\b(?:CREATE|ALTER)\s+(?:ROLE|USER|GROUP)\b[^;]*?\bPASSWORD\b(?!\s+NULL\b)", re.IGNORECASE
)
_TOLD_OUTSIDE = (
    "it may hold a secret, and migrations are kept in journals and shown to people. Roles with secrets are "
    "made outside of migrations, and so are connections with them: do it by hand"
)
_NEVER = {
    _SECRETS: _TOLD_OUTSIDE,
    r"(?:BEGIN|START TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE TRANSACTION)\b": (
        "it controls transactions, but the migration and its row in the version table are one. Remove it"
    ),
    r".*\\": "a backslash outside quotes is a command of psql's own. Write it as SQL",
    r"COPY\b.*\b(?:FROM STDIN|TO STDOUT)\b": (
        "its rows do not come as SQL. Write INSERT, or load them by another way beforehand"
    ),
    rf"(?:SET|RESET)\b.*\b(?:{_TIMEOUTS}|STANDARD_CONFORMING_STRINGS)\b": (
        "timeouts and the form of strings are the executor's business: it waits for locks in short tries. "
        "Remove it"
    ),
    r"RESET ALL\b|DISCARD\b|(?:SET|RESET) (?:SESSION |LOCAL )?(?:ROLE|SESSION AUTHORIZATION)\b": (
        "it changes the executor's own session. Remove it"
    ),
    r".*\bSET_CONFIG \(": "which setting it changes is not seen from outside. Write SET LOCAL",
    _IRREVOCABLE: "it cannot be rolled back, nor repeated when it dies half-way. Do it by hand",
}
_NEEDS_NO_TRANSACTION = re.compile(
    r"(?:CREATE (?:UNIQUE )?|DROP )INDEX CONCURRENTLY\b|REINDEX (?:[^']* )?CONCURRENTLY\b|VACUUM\b"
    r"|REINDEX (?:\( [^)]* \) )?(?:SCHEMA|DATABASE|SYSTEM)\b|CLUSTER$"
)
_REPEATABLE = re.compile(
    r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS\b|DROP INDEX CONCURRENTLY IF EXISTS\b"
    r"|ALTER TYPE [^ ]+(?: \. [^ ]+)* ADD VALUE IF NOT EXISTS\b|VACUUM\b|ANALYZE\b"
    r"|REINDEX (?:\( [^)]* \) )?(?:INDEX|TABLE|SCHEMA|DATABASE) CONCURRENTLY\b"
    r"|REINDEX \( (?:[^)]* )?CONCURRENTLY(?: [^)]*)? \)"
)


def refuse_unfit(statements: tuple[str, ...], *, where: str, is_transactional: bool) -> None:
    """Refuse statements that break the rules of a migration's kind.

    A transactional one is all or nothing. Any other may die between two statements, or in one, and is then
    begun again or taken back: each of its statements must be right a second time.

    Raises:
        InvalidRequestError: says which statement of `where`, why, and what to do.
    """
    for statement in statements:
        words = shape(statement)
        reason = _why_not(words, is_transactional=is_transactional)
        if re.match(r"DO\b", words) and _SECRET_IN_BLOCK.search(statement):
            reason = _TOLD_OUTSIDE
        if reason:
            raise InvalidRequestError(
                f"{where}: `{without_values(statement)}` is refused: {reason}. Nothing was touched."
            )


def _why_not(words: str, *, is_transactional: bool) -> str:
    for pattern, reason in _NEVER.items():
        if re.match(pattern, words):
            return reason
    if is_transactional and _NEEDS_NO_TRANSACTION.match(words):
        return (
            "it cannot run in a transaction. Give it a migration of its own outside of one: "
            f"`{NO_TRANSACTION}` as the first line of the .up.sql file, or alembic's autocommit_block()"
        )
    if not is_transactional and not _REPEATABLE.match(words):
        return (
            "outside a transaction a migration may die half-way, so each statement must be right a second "
            "time. Only CREATE INDEX CONCURRENTLY IF NOT EXISTS, DROP INDEX CONCURRENTLY IF EXISTS, ALTER "
            "TYPE … ADD VALUE IF NOT EXISTS, REINDEX … CONCURRENTLY, VACUUM and ANALYZE are. Put the rest "
            "into a migration of its own"
        )
    return ""
