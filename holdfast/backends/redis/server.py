"""What a server says of itself: version, mode, and what its persistence and memory policy mean for us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from redis.exceptions import ResponseError

from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.redis.errors import translate
from holdfast.backends.redis.link import Argument, Reply
from holdfast.errors import ConfigError
from holdfast.model import Durability

__all__ = ["INSPECTION", "Facts", "check", "durability_of", "facts_from"]

_log: Final = structlog.stdlib.get_logger("holdfast.redis")

INSPECTION: Final[Sequence[tuple[Argument, ...]]] = (
    (b"INFO",),
    (b"CONFIG", b"GET", b"appendfsync"),
    (b"CONFIG", b"GET", b"no-appendfsync-on-rewrite"),
    (b"CONFIG", b"GET", b"proto-max-bulk-len"),
)
"""The commands whose replies `facts_from` reads."""

_OLDEST: Final = (7, 0)
_USUAL_BULK_BYTES: Final = 512 << 20


class Facts(NamedTuple):
    """Of one server. ``appendfsync`` is None where it may not be asked for."""

    version: str
    product: str
    cluster: bool
    role: str
    replicas: int
    appendonly: bool
    appendfsync: str | None
    log_has_begun: bool
    """Not while the server writes its log for the first time since that was switched on: it is of no use before."""
    fsync_during_rewrite: bool
    maxmemory: int
    maxmemory_policy: str
    used_memory: int
    max_bulk_bytes: int
    """Of one argument of a command, so of one call of a script."""


def facts_from(replies: Sequence[Reply]) -> Facts:
    """Raises: `Unavailable`."""
    info_reply, fsync, on_rewrite, bulk = replies
    if isinstance(info_reply, Exception):
        raise translate(info_reply) from info_reply
    info = _parse_info(info_reply)
    valkey = info.get("valkey_version")
    return Facts(
        version=valkey or info.get("redis_version", "0"),
        product="valkey" if valkey else "redis",
        cluster=info.get("cluster_enabled") == "1",
        role=info.get("role", "master"),
        replicas=int(info.get("connected_slaves", "0")),
        appendonly=info.get("aof_enabled") == "1",
        appendfsync=_parse_setting(fsync),
        log_has_begun=not _writes_first_log(info),
        fsync_during_rewrite=_parse_setting(on_rewrite) != "yes",
        maxmemory=int(info.get("maxmemory", "0")),
        maxmemory_policy=info.get("maxmemory_policy", "noeviction"),
        used_memory=int(info.get("used_memory", "0")),
        max_bulk_bytes=int(_parse_setting(bulk) or _USUAL_BULK_BYTES),
    )


def _writes_first_log(info: Mapping[str, str]) -> bool:
    """It may be another time as well, of a server that began without data: nothing tells them apart."""
    rewrites = "1" in (info.get("aof_rewrite_in_progress"), info.get("aof_rewrite_scheduled"))
    return info.get("aof_enabled") == "1" and rewrites and info.get("aof_base_size", "0") == "0"


def _parse_info(text: bytes) -> Mapping[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _parse_setting(reply: Reply) -> str | None:
    if isinstance(reply, ResponseError) or not reply:
        return None
    value: bytes = reply[1]
    return value.decode()


def durability_of(facts: Facts, config: RedisConfig) -> Durability:
    """What a commit survives once it is answered.

    With ``appendfsync always`` the server syncs its log before it answers. Otherwise it has written the log,
    and a killed server loses nothing of it, but power loss may take the last seconds. Nothing here speaks of
    failover: replicas follow behind.
    """
    if config.server_durability is not None:
        return config.server_durability
    if not facts.appendonly:
        return Durability.MEMORY
    if facts.appendfsync == "always" and facts.fsync_during_rewrite:
        return Durability.DISK
    return Durability.PROCESS if facts.appendfsync is not None else Durability.MEMORY


def check(facts: Facts, config: RedisConfig) -> None:
    """Raises: `ConfigError` for a server that is too old, or may drop sessions when its memory is full."""
    if facts.product == "redis" and _version(facts.version) < _OLDEST:
        raise ConfigError("url", f"the server is Redis {facts.version}; 7.0 or newer is needed, or Valkey")
    if facts.maxmemory_policy != "noeviction":
        if facts.maxmemory and not config.allow_eviction:
            raise ConfigError(
                "allow_eviction",
                f"the server's maxmemory-policy {facts.maxmemory_policy} would drop sessions when its memory is full: "
                "set it to noeviction, or say allow_eviction=true",
            )
        _log.warning("redis.may_evict", policy=facts.maxmemory_policy, maxmemory=facts.maxmemory)
    if facts.appendonly and facts.appendfsync is None and config.server_durability is None:
        _log.warning("redis.durability_unknown", reason="CONFIG is forbidden", setting="server_durability")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
