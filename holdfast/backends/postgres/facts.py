"""What the server is and how it is set up: found out at open, and for `holdfast doctor`."""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.names import Names
from holdfast.backends.postgres.schema import TABLES
from holdfast.errors import ConfigError
from holdfast.model import Durability

__all__ = ["Facts", "describe", "find_facts", "is_pooled"]

_OLDEST: Final = 150_000

_QUERY: Final = """
    SELECT current_setting('server_version_num')::int, current_setting('server_version'),
        current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
        current_setting('synchronous_standby_names') <> '', current_setting('transaction_isolation')"""


class Facts(msgspec.Struct, frozen=True):
    """Of the server that was found at open."""

    version_number: int
    version: str
    fsync: bool
    full_page_writes: bool
    synchronous_standbys: bool
    isolation: str

    @property
    def durability(self) -> Durability:
        """The best level that a commit can reach."""
        if not (self.fsync and self.full_page_writes):
            return Durability.PROCESS
        return Durability.REPLICATED if self.synchronous_standbys else Durability.DISK


async def is_pooled(connection: Connection) -> bool:
    """Whether a pooler is in between: the process that answers is not the one that the connection was made to."""
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid != connection.get_server_pid()


async def find_facts(connection: Connection) -> Facts:
    """Raises: `ConfigError` if this server cannot be used."""
    facts = Facts(*await connection.fetchrow(_QUERY))
    if facts.version_number < _OLDEST:
        raise ConfigError("url", f"PostgreSQL {facts.version} is too old: 15 or newer is needed")
    if facts.isolation != "read committed":
        raise ConfigError(
            "url",
            f"the database's default_transaction_isolation is {facts.isolation!r}, and through a pooler it cannot be "
            "set for a connection: ALTER ROLE … SET default_transaction_isolation = 'read committed'",
        )
    return facts


async def describe(connection: Connection, names: Names) -> dict[str, object]:
    facts = await find_facts(connection)
    sizes = await connection.fetch(
        "SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class AS c"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = ANY ($2)",
        names.schema,
        [names.prefix + table for table in TABLES],
    )
    return {
        "server_version": facts.version,
        "fsync": facts.fsync,
        "full_page_writes": facts.full_page_writes,
        "synchronous_standbys": facts.synchronous_standbys,
        "durability": facts.durability.value,
        "schema": names.schema,
        "table_prefix": names.prefix,
        "schema_version": await connection.fetchval(names.sql("SELECT version FROM @schema_version")),
        "table_bytes": {name.removeprefix(names.prefix): size for name, size in sizes},
    }
