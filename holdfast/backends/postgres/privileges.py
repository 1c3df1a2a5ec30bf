"""What a role needs that may not create tables: there, granted by an administrator, and checked at open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.functions import FUNCTIONS
from holdfast.backends.postgres.names import Names
from holdfast.errors import SchemaError

__all__ = ["FUNCTION_NAMES", "TABLE_PRIVILEGES", "check_complete", "check_privileges", "grants"]

TABLE_PRIVILEGES: Final[Mapping[str, str]] = MappingProxyType({
    "schema_version": "SELECT",
    "sessions": "SELECT, INSERT, UPDATE, DELETE",
    "state": "SELECT, INSERT, UPDATE, DELETE",
    "events": "SELECT, INSERT, DELETE",
    # Its rows are never changed, but locked, which needs the same.
    "overdue": "SELECT, INSERT, UPDATE, DELETE",
    "markers": "SELECT, INSERT, UPDATE, DELETE",
})  # fmt: skip

FUNCTION_NAMES: Final = tuple(re.findall(r"CREATE FUNCTION @(\w+)", " ".join(FUNCTIONS)))

_LACKING: Final = """
    SELECT 'USAGE ON SCHEMA "' || n.nspname || '"'
    FROM pg_namespace AS n WHERE n.nspname = $1 AND NOT has_schema_privilege(n.oid, 'USAGE')
    UNION ALL
    SELECT p.privilege || ' ON "' || n.nspname || '"."' || c.relname || '"'
    FROM unnest($2::text[], $3::text[]) AS p (name, privilege)
    JOIN pg_namespace AS n ON n.nspname = $1
    JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.name
    WHERE NOT has_table_privilege(c.oid, p.privilege)
    UNION ALL
    SELECT 'EXECUTE ON FUNCTION "' || n.nspname || '"."' || f.proname || '"'
    FROM pg_namespace AS n JOIN pg_proc AS f ON f.pronamespace = n.oid
    WHERE n.nspname = $1 AND f.proname = ANY ($4::text[]) AND NOT has_function_privilege(f.oid, 'EXECUTE')"""

_ABSENT: Final = """
    SELECT t.name FROM unnest($2::text[]) AS t (name)
    WHERE NOT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = t.name AND c.relkind = 'r'
    )
    UNION ALL
    SELECT f.name || '()' FROM unnest($3::text[]) AS f (name)
    WHERE NOT EXISTS (
        SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = $1 AND p.proname = f.name
    )"""


def grants(names: Names, role: str) -> list[str]:
    """The statements that let ``role`` use the tables."""
    # The role's name comes after the others, as it may hold an @ itself.
    to = ' TO "' + role.replace('"', '""') + '"'
    return [
        f'GRANT USAGE ON SCHEMA "{names.schema}"{to}',
        *(names.sql(f"GRANT {privileges} ON @{table}") + to for table, privileges in TABLE_PRIVILEGES.items()),
        *(names.sql(f"GRANT EXECUTE ON FUNCTION @{function}") + to for function in FUNCTION_NAMES),
    ]


async def check_privileges(connection: Connection, names: Names) -> None:
    """Raises: `SchemaError` that lists all that the role lacks on what is there."""
    pairs = [(table, privilege) for table, given in TABLE_PRIVILEGES.items() for privilege in given.split(", ")]
    rows = await connection.fetch(
        _LACKING,
        names.schema,
        [names.prefix + table for table, _ in pairs],
        [privilege for _, privilege in pairs],
        [names.prefix + function for function in FUNCTION_NAMES],
    )
    if rows:
        lacking = ", ".join(row[0] for row in rows)
        raise SchemaError(
            f"the role lacks privileges: {lacking}; holdfast.backends.postgres.schema_sql(role=…) has all that it needs"
        )


async def check_complete(connection: Connection, names: Names) -> None:
    """Raises: `SchemaError` if a table or function is not there, in a schema that is said to be up to date."""
    rows = await connection.fetch(
        _ABSENT,
        names.schema,
        [names.prefix + table for table in TABLE_PRIVILEGES],
        [names.prefix + function for function in FUNCTION_NAMES],
    )
    if rows:
        absent = ", ".join(row[0] for row in rows)
        raise SchemaError(f"schema {names.schema!r} is damaged, or not Holdfast's: it lacks {absent}")
