"""Settings of the Valkey/Redis backend."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from holdfast.errors import ConfigError
from holdfast.model import Durability

__all__ = ["RedisConfig"]

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class RedisConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server is, and how it is used. A `ConfigError` names the wrong field; no field shows in `repr`."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    """A unix socket, instead of host and port."""
    username: str | None = None
    password: str | None = None
    tls: bool = False
    db: int = 0
    """A server in cluster mode has only 0."""
    prefix: str = "holdfast"
    """All keys begin with it: letters, digits and ``_.:-``. Several stores can share a server."""
    pool_size: int = 16
    """Connections to each server at most, for reads; commits have as many of their own."""
    timeout_s: float = 10.0
    """How long one answer may take."""
    connect_timeout_s: float = 5.0
    server_durability: Durability | None = None
    """What the server's persistence is worth, where it must not be asked (CONFIG is forbidden)."""
    allow_eviction: bool = False
    """Open also if the server's memory policy may drop sessions."""
    reap_after_s: float | None = 3_600.0
    """So long after a session's end the server removes it by itself, if no janitor has; None: never."""
    ssl_ca_certs: str | None = None
    """A file of certificates to trust, instead of the system's."""
    ssl_certfile: str | None = None
    """Our own certificate, if the server asks for one."""
    ssl_keyfile: str | None = None
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    ssl_check_hostname: bool = True

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigError("prefix", "must be 1 to 64 letters, digits, or any of _ . : -")
        if not 0 <= self.db <= 1_000_000:
            raise ConfigError("db", "must be the number of a database")
        if not 0 < self.port < 65_536:
            raise ConfigError("port", "must be the number of a port")
        for name in ("pool_size", "timeout_s", "connect_timeout_s", "reap_after_s"):
            value: float | None = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise ConfigError(name, f"must be above 0, not {value}")

    def __repr__(self) -> str:
        return f"RedisConfig({self.address})"

    @property
    def address(self) -> str:
        """Where the server is, without credentials."""
        return self.path if self.path is not None else f"{self.host}:{self.port}"
