"""Whether a database is whole and serves its declared queries: corruption, and latency against before."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Mapping

import psycopg

from rules.database import Database, DatabaseState, DeclaredQuery
from rules.errors import CommandError, DeployError, StepFailedError
from rules.hosts import HostAddress
from tasks.database import libpq_environment, observe_database, postgres_program
from tasks.host import run
from tasks.postgres import DatabaseError, Session, connection, error_words

log = logging.getLogger(__name__)

_HERE = HostAddress()
_CORRUPT = 2
_AMCHECK_TIMEOUT_S = 1800.0
_MAX_FAULTS = 10
_MAX_FAULT_LETTERS = 400
_RUNS = 5
_MEASURE_S = 5.0
_QUERY_TIMEOUT_S = 30.0
_LOOKS = 3
# of functions that this role may not execute, pg_amcheck says that each table is corrupt
_MAY_CHECK = """
SELECT p.proname FROM pg_extension AS e
JOIN pg_depend AS d ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
JOIN pg_proc AS p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
WHERE e.extname = 'amcheck' AND p.proname IN ('verify_heapam', 'bt_index_check')
AND has_function_privilege(p.oid, 'EXECUTE')
"""


class QueryFailedError(DeployError):
    """A declared query does not work: carries that in `words`; nothing was changed by asking."""

    def __init__(self, words: str) -> None:
        self.words = words
        super().__init__(f"{words}. Nothing was changed by asking.")


def corruption(database: Database) -> tuple[str, ...]:
    """Return what is corrupt, in words; empty: nothing was found, or nothing could be looked at.

    pg_amcheck reads every table (heap) and B-tree index of the database. It does not look into other
    indexes, such as pgvector's HNSW and IVFFlat. The extension amcheck has to be installed in the database
    already, its functions open to the role, and the program at hand: otherwise nothing is checked, and the
    log says so. Nor is anything that was not read within half an hour. What is found once but not a second
    time was a table or index that was changed meanwhile, and is not told.

    Raises:
        DatabaseError: the check could not be made, although it should: nothing is known.
        DatabaseUnreachableError: the database cannot be reached.
    """
    if not database.check_corruption:
        return ()
    if (why := _why_not_checked(database)) is not None:
        log.info("%s was not checked for corruption: %s", database.name, why)
        return ()
    found = _amcheck(database)
    again = _amcheck(database) if found else {}
    return _in_words({where: said for where, said in found.items() if where in again})


def measured_queries(database: Database, *, deployment: str) -> dict[str, float]:
    """Return the median latency of each declared query, in seconds by its name.

    Each is run up to five times, for about five seconds, in a read-only transaction; its rows are read.

    Raises:
        QueryFailedError: one does not work, or takes longer than 30 s.
        DatabaseUnreachableError: the database cannot be reached, or was lost.
    """
    if not database.queries:
        return {}
    return {query.name: _latency_s(database, query, deployment=deployment) for query in database.queries}


def verify_database(
    database: Database,
    *,
    expected: DatabaseState,
    before: DatabaseState,
    queries_before: Mapping[str, float],
    deployment: str,
) -> None:
    """Prove that a change went well: schema, rows, files and queries.

    A change may give declared tables another content, but loses none of the rows that they had. A query
    that looks too slow is measured up to three times.

    Args:
        database: which.
        expected: revisions and schema as promised; the rest of it is not looked at.
        before: the state before the change; its tables' rows are what must still be there.
        queries_before: declared query -> median seconds before the change; others need only work.
        deployment: for whom.

    Raises:
        StepFailedError: says all that is wrong.
        DatabaseError: the database cannot be read or checked.
    """
    now = observe_database(database, deployment=deployment, like=before)
    bare: dict[str, dict[str, object]] = {"tables": {}, "indexes": {}}
    words = [
        *now.model_copy(update=bare).differences(expected.model_copy(update=bare)),
        *_lost_rows(before, now),
        *corruption(database),
    ]
    for query in database.queries:
        words += _slow(database, query, queries_before.get(query.name), deployment=deployment)
    if words:
        raise StepFailedError(
            f"{database.name} is not as it should be after the change: {'; '.join(words)}. What was done is "
            "taken back."
        )


def _lost_rows(before: DatabaseState, now: DatabaseState) -> Iterator[str]:
    for name, had in sorted(before.tables.items()):
        has = now.tables.get(name)
        if has is None:
            yield f"{name} is gone"
        elif has.rows < had.rows:
            yield f"{name} has lost {had.rows - has.rows} of its {had.rows} rows"


def _slow(
    database: Database, query: DeclaredQuery, before_s: float | None, *, deployment: str
) -> Iterator[str]:
    """Say that a query does not work, or is slow each time it is measured."""
    limit_s = float("inf") if before_s is None else query.max_latency_ratio * before_s + query.grace_s
    fastest_s = float("inf")
    for _ in range(_LOOKS):
        try:
            fastest_s = min(fastest_s, _latency_s(database, query, deployment=deployment))
        except QueryFailedError as error:
            yield error.words
            return
        if fastest_s <= limit_s:
            return
    yield (
        f"query {query.name} takes {fastest_s * 1000:.1f} ms at best, more than {limit_s * 1000:.1f} ms "
        f"({query.max_latency_ratio:g} times the {(before_s or 0) * 1000:.1f} ms before, and "
        f"{query.grace_s * 1000:g} ms)"
    )


def _latency_s(database: Database, query: DeclaredQuery, *, deployment: str) -> float:
    timeout_s = min(_QUERY_TIMEOUT_S, database.statement_timeout_s)
    with connection(
        database, deployment=deployment, autocommit=True, read_only=True, statement_timeout_s=timeout_s
    ) as session:
        try:
            return statistics.median(_timed(session, query.sql))
        except psycopg.Error as error:
            if session.broken:
                raise
            raise QueryFailedError(f"query {query.name} does not work: {error_words(error)}") from error


def _timed(session: Session, query: str) -> Iterator[float]:
    deadline = time.monotonic() + _MEASURE_S
    for _ in range(_RUNS):
        began = time.perf_counter()
        # binary, because the protocol that this needs takes one statement alone
        session.execute(query.encode(), prepare=False, binary=True)
        yield time.perf_counter() - began
        if time.monotonic() > deadline:
            return


def _why_not_checked(database: Database) -> str | None:
    """Return why a check for corruption would tell nothing; None: it can be made."""
    with connection(database, deployment="deploy-amcheck", autocommit=True, read_only=True) as session:
        if session.execute(_MAY_CHECK).rowcount == 0:
            return (
                "the extension amcheck is not installed in it, or its functions are not open to "
                f"{database.address.user}"
            )
    try:
        postgres_program(database, "pg_amcheck")
    except DatabaseError as error:
        return str(error)
    return None


def _amcheck(database: Database) -> dict[str, str]:
    """Return pg_amcheck's findings: where -> what the server says of it."""
    argv = (postgres_program(database, "pg_amcheck"), "--no-password")
    try:
        finished = run(
            _HERE, argv, timeout_s=_AMCHECK_TIMEOUT_S, env=libpq_environment(database), check=False
        )
    except CommandError as error:
        log.warning("%s was not checked to its end within %g s", database.name, _AMCHECK_TIMEOUT_S)
        return _findings(error.output)
    findings = _findings(finished.stdout)
    if finished.returncode and not (finished.returncode == _CORRUPT and findings):
        raise DatabaseError(
            f"pg_amcheck could not look for corruption in {database.name}: {finished.output.strip()[-500:]}. "
            "Nothing was changed. Its program has to fit the server's version: see `programs`."
        )
    return findings


def _in_words(findings: Mapping[str, str]) -> tuple[str, ...]:
    """Return one line for each table or index, with what was found there first."""
    by_relation: dict[str, list[str]] = {}
    for where, said in findings.items():
        by_relation.setdefault(where.partition(", block ")[0], []).append(f"{where}: {said}")
    words = [
        lines[0][:_MAX_FAULT_LETTERS] + (f" (and {len(lines) - 1} more there)" if len(lines) > 1 else "")
        for lines in by_relation.values()
    ]
    more = len(words) - _MAX_FAULTS
    return (*words[:_MAX_FAULTS], f"and {more} more tables and indexes") if more > 0 else tuple(words)


def _findings(output: str) -> dict[str, str]:
    """Read pg_amcheck's output: a line for each place, with indented ones below it that say what is wrong."""
    findings: dict[str, str] = {}
    where = ""
    for line in output.splitlines():
        if line.startswith(("heap table", "btree index")):
            where = line.strip().rstrip(":")
        elif where and line.strip():
            findings[where] = f"{findings.get(where, '')} {line.strip()}".strip()
    return findings
