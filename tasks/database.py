"""A database's observable state, as it is read: revisions, schema, content of declared tables, indexes."""

from __future__ import annotations

import functools
import glob
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from psycopg import sql
from pydantic import TypeAdapter, ValidationError

from rules.database import Database, DatabaseState, IndexFacts, QualifiedName
from rules.errors import CommandError, InvalidRequestError
from rules.hosts import HostAddress
from tasks.host import run
from tasks.postgres import DatabaseError, Session, connection, quoted
from tasks.table_digest import Counted, digest, let_writers_finish, table_as_before, table_now

log = logging.getLogger(__name__)

_HERE = HostAddress()
_DUMP_TIMEOUT_S = 300.0
_DUMP_TRIES = 3
_DUMP_PAUSE_S = 0.5
_DUMP_LOCK_WAIT_MS = 400
_DEBIAN_PROGRAMS = "/usr/lib/postgresql/*/bin"
#: What pg_dump writes for psql, for people and for the session that restores, outside of quoted text.
_QUOTED = r"""\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$|'[^']*(?:''[^']*)*'|"[^"]*(?:""[^"]*)*\""""
_NOISE = r"^(?:|--[^\n]*|\\[^\n]*|SET (?!default_)[^\n]*;|{schemas})\n"
_VERSION_COLUMN = """
SELECT a.attname FROM pg_attribute AS a LEFT JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum = ANY (i.indkey) DESC NULLS LAST, a.attnum LIMIT 1
"""
# However the role or the database is set up: text is written alike each time it is read, types of extensions
# without their schema, and rows that a policy hides are an error, not absent.
_SAME_EACH_TIME = """
SELECT set_config(name, value, true) FROM (VALUES
    ('timezone', 'UTC'), ('datestyle', 'ISO'), ('intervalstyle', 'postgres'), ('bytea_output', 'hex'),
    ('extra_float_digits', '1'), ('lc_monetary', 'C'), ('xmlbinary', 'base64'), ('row_security', 'off'),
    ('search_path', (
        SELECT string_agg(DISTINCT quote_ident(n.nspname), ', ')
        FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
    ))
) AS settings (name, value) WHERE value IS NOT NULL
"""
_INDEXES = """
SELECT
    inside.nspname || '.' || c.relname, of_table.nspname || '.' || t.relname, quote_ident(c.relname),
    pg_get_indexdef(i.indexrelid), i.indisvalid AND i.indisready AND i.indislive,
    of_parent.nspname || '.' || p.relname
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS inside ON inside.oid = c.relnamespace
JOIN pg_class AS t ON t.oid = i.indrelid JOIN pg_namespace AS of_table ON of_table.oid = t.relnamespace
LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid
LEFT JOIN pg_class AS p ON p.oid = h.inhparent
LEFT JOIN pg_namespace AS of_parent ON of_parent.oid = p.relnamespace
WHERE i.indrelid = to_regclass(%(table)s)
OR i.indrelid IN (SELECT relid FROM pg_partition_tree(to_regclass(%(table)s)))
ORDER BY 1
"""
_PLAIN_NAME = TypeAdapter(QualifiedName)


def observe_database(
    database: Database,
    *,
    deployment: str,
    like: DatabaseState | None = None,
    indexes_of: str | None = None,
) -> DatabaseState:
    """Read a database's state; nothing of it is changed, and nobody waits.

    Revisions, content and indexes are of one moment; the schema is read right after it. Corruption and
    queries are not looked at: `faults` and `queries` stay empty. A first reading of a table that is appended
    to waits up to five seconds for transactions that may still add rows below its watermark.

    Args:
        database: which.
        deployment: for whom.
        like: an earlier state: the same columns and rows are summed up as then, so that both can be
            compared. A declared table that is gone is left out, and one that has lost a column sums up to
            those words.
        indexes_of: a table whose indexes are told, with those of all its partitions.

    Raises:
        InvalidRequestError: without `like`: a table that is declared or asked for does not exist, or its
            `append_only_by` cannot be what it is declared to be.
        DatabaseError: it refused to be read, or is corrupt; or no pg_dump of its version is at hand.
        DatabaseUnreachableError: it cannot be reached, or was lost.
    """
    limit_s = database.statement_timeout_s
    with connection(
        database, deployment=deployment, autocommit=True, read_only=True, statement_timeout_s=limit_s
    ) as session:
        with _same_each_time(session):
            if like is None:
                _refuse_missing(session, indexes_of)
            content = _content(session, database, like)
        if like is None and any(table.append_only_by for table in database.tables):
            let_writers_finish(session)
        with _same_each_time(session):
            revisions = dict(_revisions(session, database.version_tables))
            tables = {part.name: digest(session, part) for part in content if part}
            indexes = _indexes(session, indexes_of) if indexes_of else {}
    return DatabaseState(
        revisions=revisions, schema_sha256=schema_sha256(database), tables=tables, indexes=indexes
    )


def schema_sha256(database: Database) -> str:
    """Return a checksum of the schema: of what pg_dump --schema-only says, without its comments and settings.

    It covers what pg_dump does: tables with the order of their columns, constraints, indexes, views,
    functions, triggers, types, sequences, extensions' names, owners, privileges, comments and policies.
    Left out are the declared version tables and their schema's own line: a runner makes them when first
    used, and a way down keeps them. pg_dump passes over indexes that are not valid, extensions' versions,
    roles, settings of the database, and what is temporary.

    It takes no lock but those of readers, and waits for none longer than 0.4 s at a time. A table that
    somebody else has locked is tried again for as long as `database.lock` has patience.

    Raises:
        DatabaseError: pg_dump failed, is missing, or older than the server.
    """
    return checksum(schema_statements(database))


def schema_statements(database: Database) -> str:
    """Return the text that `schema_sha256` is the checksum of; it can hold passwords of subscriptions.

    Raises:
        DatabaseError: see `schema_sha256`.
    """
    schemas = {name.partition(".")[0] for name in database.version_tables} - {"public"}
    return _statements(_dump(database), schemas)


def checksum(statements: str) -> str:
    """Return the checksum of a schema by its statements."""
    return hashlib.sha256(statements.encode()).hexdigest()


def postgres_program(database: Database, name: str) -> str:
    """Return where a program of PostgreSQL is: the declared directory, PATH, or Debian's newest version.

    Raises:
        DatabaseError: it is in none of them.
    """
    if database.programs:
        places = [f"{database.programs}/{name}"]
    else:
        debian = sorted(glob.glob(f"{_DEBIAN_PROGRAMS}/{name}"), key=_version, reverse=True)  # noqa: PTH207 - absolute
        places = [found for found in (shutil.which(name), *debian) if found]
    for place in places:
        if os.access(place, os.X_OK):
            return place
    where = database.programs or f"PATH or {_DEBIAN_PROGRAMS}"
    raise DatabaseError(
        f"there is no {name} in {where}. Nothing was changed. Install PostgreSQL's programs, of the server's "
        f"version or newer, or name their directory in `programs` of {database.name}."
    )


def libpq_environment(database: Database) -> dict[str, str]:
    """Return what PostgreSQL's programs need to reach a database; no argument of theirs has to tell it."""
    address = database.address
    passfile = {"PGPASSFILE": address.passfile} if address.passfile else {}
    return {
        "LC_ALL": "C",
        "PGHOST": address.host,
        "PGPORT": str(address.port),
        "PGUSER": address.user,
        "PGDATABASE": address.database,
        "PGCONNECT_TIMEOUT": "10",
        "PGAPPNAME": "sovereign-deploy",
        # a server process whose program was killed does not read on
        "PGOPTIONS": "-c client_connection_check_interval=1000",
        **passfile,
    }


@contextmanager
def _same_each_time(session: Session) -> Iterator[None]:
    """One moment of the database, with its text written the same way whenever it is read."""
    with session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        session.execute(_SAME_EACH_TIME)
        yield


def _refuse_missing(session: Session, table: str | None) -> None:
    if table and session.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
        raise InvalidRequestError(f"There is no table {table}. Nothing was touched.")


def _content(session: Session, database: Database, like: DatabaseState | None) -> list[Counted | None]:
    if like is None:
        return [table_now(session, table) for table in database.tables]
    known = [(table, like.tables.get(table.name)) for table in database.tables]
    return [table_as_before(session, table, before) for table, before in known if before]


def _revisions(session: Session, tables: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for table in tables:
        # the runner's key: its only column in alembic's table
        column = session.execute(_VERSION_COLUMN, (table,)).fetchone()
        if column:
            query = sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(column[0]), quoted(table))
            yield table, tuple(sorted(str(row[0]) for row in session.execute(query).fetchall()))


def _indexes(session: Session, table: str) -> dict[str, IndexFacts]:
    facts = {}
    for row in session.execute(_INDEXES, {"table": table}).fetchall():
        name, of_table, own_name, definition, is_valid, parent = row
        if not all(_is_plain(one) for one in (name, of_table, parent) if one is not None):
            log.info("index %s of %s is passed over: such a name needs quotes", name, of_table)
            continue
        facts[name] = IndexFacts(
            table=of_table,
            definition=definition.replace(f"INDEX {own_name} ON ", "INDEX ON ", 1),
            is_valid=is_valid,
            parent=parent,
        )
    return facts


def _is_plain(name: str) -> bool:
    try:
        _PLAIN_NAME.validate_python(name)
    except ValidationError:
        return False
    return True


def _dump(database: Database) -> str:
    """Return the schema as pg_dump writes it; a table that is locked right now is tried again."""
    program = postgres_program(database, "pg_dump")
    # in memory: a schema can hold passwords of subscriptions, and be larger than what a command may print
    with os.fdopen(os.memfd_create("schema"), "r+b") as file:
        argv = [
            program,
            "--schema-only",
            "--no-password",
            "--no-sync",
            f"--lock-wait-timeout={_DUMP_LOCK_WAIT_MS}",
        ]
        argv += ["--restrict-key=x"] if _knows_restrict_key(program) else []
        argv += [f"--exclude-table={table}" for table in database.version_tables]
        argv += [f"--file=/proc/{os.getpid()}/fd/{file.fileno()}"]
        _run_patiently(database, argv)
        file.seek(0)
        return file.read().decode()


def _run_patiently(database: Database, argv: Sequence[str]) -> None:
    """Run pg_dump; as long as a table is locked it is tried again, and not often otherwise."""
    give_up_at, failures = time.monotonic() + database.lock.patience_s, 0
    while True:
        try:
            run(_HERE, argv, timeout_s=_DUMP_TIMEOUT_S, env=libpq_environment(database))
        except CommandError as error:
            # a schema that others change meanwhile can fail it once
            failures += "Query was: LOCK TABLE" not in error.output
            if failures == _DUMP_TRIES or time.monotonic() > give_up_at:
                raise DatabaseError(_no_dump(database, error)) from error
            time.sleep(_DUMP_PAUSE_S)
        else:
            return


def _no_dump(database: Database, error: CommandError) -> str:
    said = error.output.strip()[-500:] or str(error)
    return (
        f"the schema of {database.name} could not be read: {said}. Nothing was changed. pg_dump has to be of "
        "the server's version or newer: name its directory in `programs`; and nobody may hold a table locked "
        f"for longer than {database.lock.patience_s:g} s."
    )


@functools.cache
def _knows_restrict_key(program: str) -> bool:
    return "--restrict-key" in run(_HERE, (program, "--help"), env={"LC_ALL": "C"}).stdout


def _statements(dump: str, schemas: set[str]) -> str:
    """Return a dump's statements alone, with all quoted text as it is."""
    own = "|".join(rf"(?:CREATE|ALTER) SCHEMA {re.escape(schema)}\b[^\n]*;" for schema in sorted(schemas))
    pattern = f"(?P<quoted>{_QUOTED})|{_NOISE.format(schemas=own)}"
    return re.sub(pattern, lambda found: found["quoted"] or "", dump, flags=re.DOTALL | re.MULTILINE)


def _version(path: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path))
