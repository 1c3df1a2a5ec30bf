"""The PostgreSQL backend (15 or newer, asyncpg): any number of instances on one database.

It is imported by `holdfast.open("postgresql://…")`, not by `import holdfast`.
"""

from __future__ import annotations

from urllib.parse import SplitResult

from holdfast.backends.postgres.backend import PostgresBackend
from holdfast.backends.postgres.config import PostgresConfig, take_dsn
from holdfast.backends.postgres.schema import schema_sql
from holdfast.backends.urls import take_struct

__all__ = ["PostgresBackend", "PostgresConfig", "from_url", "schema_sql"]


def from_url(url: SplitResult, params: dict[str, str]) -> PostgresBackend:
    """``postgresql://user:password@host/database``; parameters are the driver's own, or fields of `PostgresConfig`."""
    dsn = take_dsn(url, params)
    return PostgresBackend(take_struct(params, PostgresConfig, dsn=dsn))
