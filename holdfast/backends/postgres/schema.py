"""The tables, and how an older schema becomes a current one.

The table ``schema_version`` counts the steps of `STEPS` that a schema has had. A step, once released,
is never changed. Steps run in one transaction under an advisory lock: of many instances that start at
once, one does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.functions import FUNCTIONS
from holdfast.backends.postgres.names import Names
from holdfast.backends.postgres.privileges import check_complete, check_privileges, grants
from holdfast.errors import SchemaError

__all__ = ["STEPS", "TABLES", "prepare", "schema_sql"]

TABLES: Final = ("schema_version", "sessions", "state", "events", "overdue", "markers")

STEPS: Final[Sequence[Sequence[str]]] = (
    (
        # Names and contents are bytes: text cannot hold NUL, and jsonb would change numbers. For a
        # person: convert_from(data, 'UTF8').
        # No index has a column that a commit changes, so a commit rewrites a row within its page (HOT).
        # ``due_us`` is when the janitor should look at a session: never later than it expires, and not
        # moved by a touch, but by the janitor that finds the session alive.
        """CREATE TABLE @sessions (
            incarnation bigint PRIMARY KEY,
            id text COLLATE "C" NOT NULL UNIQUE,
            owner bytea,
            created_us bigint NOT NULL,
            active_us bigint NOT NULL,
            ttl_us bigint,
            deadline_us bigint,
            due_us bigint,
            closed boolean NOT NULL,
            metadata bytea NOT NULL,
            first_seq bigint NOT NULL,
            last_seq bigint NOT NULL,
            version bigint NOT NULL
        ) WITH (fillfactor = 50)""",
        "CREATE INDEX ON @sessions (owner, incarnation) WHERE owner IS NOT NULL",
        "CREATE INDEX ON @sessions (due_us) WHERE due_us IS NOT NULL",
        """CREATE TABLE @state (
            incarnation bigint NOT NULL,
            key bytea NOT NULL,
            value bytea NOT NULL,
            version bigint NOT NULL,
            PRIMARY KEY (incarnation, key)
        ) WITH (fillfactor = 80)""",
        """CREATE TABLE @events (
            incarnation bigint NOT NULL,
            seq bigint NOT NULL,
            stream bytea NOT NULL,
            type bytea NOT NULL,
            data bytea NOT NULL,
            retry_ms bigint,
            time_us bigint NOT NULL,
            PRIMARY KEY (incarnation, seq)
        )""",
        # Sessions, removed ones too, that have rows in events which nobody can read any more.
        "CREATE TABLE @overdue (incarnation bigint PRIMARY KEY)",
        # ``flush``: the last one committed, with its outcomes. ``voided``: the last one that must not commit.
        """CREATE TABLE @markers (
            writer text COLLATE "C" NOT NULL,
            lane int NOT NULL,
            flush bigint NOT NULL,
            voided bigint NOT NULL,
            sync text NOT NULL,
            time_us bigint NOT NULL,
            ordinals int[],
            status int[],
            base_version bigint[],
            base_seq bigint[],
            base_first_seq bigint[],
            first_seq bigint[],
            PRIMARY KEY (writer, lane)
        ) WITH (fillfactor = 20)""",
        *FUNCTIONS,
    ),
)

_ROOT: Final = (
    'CREATE SCHEMA "{schema}"',
    "CREATE TABLE @schema_version (version int NOT NULL)",
    "INSERT INTO @schema_version (version) VALUES (0)",
)


def _statements(names: Names, found: int, steps: Sequence[Sequence[str]], *, schema_exists: bool) -> list[str]:
    """What leads from version ``found`` to the current one; 0: there is nothing yet."""
    root = _ROOT[schema_exists:] if not found else ()
    templates = [*root, *(statement for step in steps[found:] for statement in step)]
    templates.append(f"UPDATE @schema_version SET version = {len(steps)}")  # noqa: S608
    return [names.sql(template.replace("{schema}", names.schema)) for template in templates]


def schema_sql(schema: str = "holdfast", table_prefix: str = "", *, role: str | None = None) -> str:
    """What an administrator runs for instances that may not create tables; with the grants that ``role`` needs."""
    names = Names(schema, table_prefix)
    statements = _statements(names, 0, STEPS, schema_exists=False)
    if role is not None:
        statements += grants(names, role)
    return "".join(f"{statement};\n" for statement in ["BEGIN", *statements, "COMMIT"])


async def prepare(
    connection: Connection, names: Names, *, migrate: bool, steps: Sequence[Sequence[str]] = STEPS
) -> None:
    """Bring the schema up to date, or (not ``migrate``) check that it is.

    Raises: `SchemaError` if it is newer, not ours, older and not to be migrated, or not ours to use.
    """
    if await _found(connection, names, steps) == len(steps):
        return
    if not migrate:
        raise SchemaError(
            f"schema {names.schema!r} is missing or older than this version of Holdfast needs, and migrate is off: "
            "let an administrator run what holdfast.backends.postgres.schema_sql() returns, or open it once with "
            "migrate on",
            supported=len(steps),
        )
    async with connection.transaction(isolation="read_committed"):
        # Of the schema alone: stores with other prefixes may be about to create it, too.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"holdfast {names.schema}")
        found = await _found(connection, names, steps)
        if found < len(steps):
            schema_exists = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", names.schema
            )
            for statement in _statements(names, found, steps, schema_exists=bool(schema_exists)):
                await connection.execute(statement)


async def _found(connection: Connection, names: Names, steps: Sequence[Sequence[str]]) -> int:
    """The schema's version; 0 if there is none yet.

    Raises: `SchemaError` for a newer or foreign one, or one that the role may not use.
    """
    exists = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND c.relname = $2)",
        names.schema,
        f"{names.prefix}schema_version",
    )
    if not exists:
        return 0
    await check_privileges(connection, names)
    rows = await connection.fetch(names.sql("SELECT version FROM @schema_version LIMIT 2"))
    if len(rows) != 1 or not isinstance(rows[0][0], int):
        raise SchemaError(f"schema {names.schema!r} has a table {names.prefix}schema_version that is not Holdfast's")
    found: int = rows[0][0]
    if found > len(steps):
        raise SchemaError(
            f"schema {names.schema!r} has version {found}; this version of Holdfast knows up to {len(steps)}",
            found=found,
            supported=len(steps),
        )
    if found == len(steps):
        await check_complete(connection, names)
    return found
