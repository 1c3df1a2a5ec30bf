"""Settings of the SQLite backend."""

from __future__ import annotations

import msgspec

from holdfast.errors import ConfigError

__all__ = ["SQLiteConfig"]


class SQLiteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the file is, and how it is shared. A `ConfigError` names the wrong field."""

    path: str
    """Created if it is not there; its folder must be. On a local disk: WAL does not work over a network."""
    exclusive: bool = False
    """Lock every other process out, so that reads need no I/O. An error at open if it is in use."""
    busy_timeout_s: float = 5.0
    """How long to wait for another process's transaction before `Unavailable`."""
    poll_interval_s: float = 0.02
    """How often to look whether another process has committed."""
    checkpoint_pages: int = 4_000
    """Copy the write-ahead log into the database when it has about so many pages."""
    cache_bytes: int = 16 << 20
    """Page cache of each of the connections (two, or one if exclusive)."""

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path:
            raise ConfigError("path", "must name a file")
        if self.path.startswith(":memory:"):
            raise ConfigError("path", "is no file; use memory:// for a store in memory")
        for name in ("busy_timeout_s", "poll_interval_s", "checkpoint_pages", "cache_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, f"must be above 0, not {getattr(self, name)}")
