"""The Valkey/Redis backend: one server, or a cluster; Valkey 7.2 or newer, Redis 7.0 or newer.

It is imported by `holdfast.open("redis://…")`, not by `import holdfast`. Layout and script: docs/adr/0008.
"""

from __future__ import annotations

from urllib.parse import SplitResult, unquote

from holdfast.backends.redis.backend import RedisBackend
from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.urls import take_struct
from holdfast.errors import ConfigError

__all__ = ["RedisBackend", "RedisConfig", "from_url"]


def from_url(url: SplitResult, params: dict[str, str]) -> RedisBackend:
    """``redis://user:password@host:6379/0``; ``rediss://`` for TLS; ``redis+unix:///path/of.sock?db=0``.

    In a cluster, any of its nodes. Parameters are fields of `RedisConfig`.

    Raises: `ConfigError`.
    """
    place = _socket(url) if url.scheme == "redis+unix" else _server(url)
    secrets = {
        "username": unquote(url.username) if url.username else None,
        "password": unquote(url.password) if url.password else None,
    }
    return RedisBackend(take_struct(params, RedisConfig, **place, **secrets))


def _socket(url: SplitResult) -> dict[str, object]:
    path = unquote(url.path)
    if url.hostname or not path.strip("/") or "\0" in path:
        raise ConfigError("url", "names no socket: write redis+unix:///folder/file.sock")
    return {"path": path, "host": "localhost", "port": 6379, "tls": False}


def _server(url: SplitResult) -> dict[str, object]:
    if "," in url.netloc.rpartition("@")[2]:
        raise ConfigError("url", "names several hosts: write one; a cluster's node tells of the others")
    place: dict[str, object] = {
        "path": None,
        "host": url.hostname or "localhost",
        "port": url.port or 6379,
        "tls": url.scheme == "rediss",
    }
    database = url.path.strip("/")
    if database:
        if not (database.isascii() and database.isdigit()):
            raise ConfigError("url", "the path is the number of a database, as in redis://localhost:6379/0")
        place["db"] = int(database[:9])
    return place
