"""Settings of the PostgreSQL backend."""

from __future__ import annotations

import re
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import msgspec

from holdfast.errors import ConfigError
from holdfast.settings import redact

__all__ = ["PostgresConfig", "check_dsn", "take_dsn"]

_SCHEMA: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
_PREFIX: Final = re.compile(r"([a-z_][a-z0-9_]{0,29})?")

_PORTS: Final = re.compile(r"(\d+(,\d+)*)?")

_DRIVER_PARAMETERS: Final = (
    "host", "port", "user", "password", "database", "dbname", "passfile", "service", "servicefile",
    "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version",
    "target_session_attrs", "krbsrvname", "gsslib", "application_name",
)  # fmt: skip
"""What asyncpg reads from a URL. ``application_name`` is a setting of the server, which every pooler passes on."""


class PostgresConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which database, and how it is used. A `ConfigError` names the wrong field."""

    dsn: str
    """As asyncpg takes it: ``postgresql://user:password@host:port/database?sslmode=verify-full``."""
    schema: str = "holdfast"
    """A schema of its own, made on request: the application's tables and ``search_path`` stay out of it."""
    table_prefix: str = ""
    """Several stores may share a schema under different prefixes."""
    migrate: bool = True
    """Create and update the tables. False: verify them only, so that the role needs no right to create."""
    pool_min: int = 1
    """Connections made at open."""
    pool_max: int = 10
    """Connections at most, beside one for hints to other instances and one to receive these."""
    lanes: int | None = None
    """Flushes in flight at once that suit this database; None: 4. The engine's ``writer.lanes`` goes before it."""
    connect_timeout_s: float = 5.0
    pool_timeout_s: float = 5.0
    """How long to wait for a free connection before `Overloaded`."""
    statement_timeout_s: float = 10.0
    """A statement that takes longer is given up; so is its connection if the server does not even say so."""
    pgbouncer: bool | None = None
    """A pooler in transaction mode is in between: no prepared statements, no hints. None: find out at open."""

    def __post_init__(self) -> None:
        if not _SCHEMA.fullmatch(self.schema):
            raise ConfigError("schema", "must be up to 63 of a-z, 0-9 and _, not begin with a digit or pg_")
        if not _PREFIX.fullmatch(self.table_prefix):
            raise ConfigError("table_prefix", "must be up to 30 of a-z, 0-9 and _, not begin with a digit")
        for name in ("pool_max", "connect_timeout_s", "pool_timeout_s", "statement_timeout_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(name, f"must be above 0, not {getattr(self, name)}")
        if not 0 <= self.pool_min <= self.pool_max:
            raise ConfigError("pool_min", f"must be from 0 to pool_max, not {self.pool_min}")
        if self.lanes is not None and self.lanes < 1:
            raise ConfigError("lanes", f"must be above 0, not {self.lanes}")

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "dsn")
        return f"{type(self).__name__}(dsn={redact(self.dsn)!r}, {', '.join(shown)})"

    @property
    def reply_timeout_s(self) -> float:
        """How long to wait for the reply to a statement: the server's own limit, and time to say so."""
        return self.statement_timeout_s + 2.0


def take_dsn(url: SplitResult, params: dict[str, str]) -> str:
    """The driver's part of a store URL; its parameters are taken out of ``params``."""
    own: dict[str, str] = {name: params.pop(name) for name in _DRIVER_PARAMETERS if name in params}
    return urlunsplit(("postgresql", url.netloc, url.path, urlencode(own), ""))


def check_dsn(dsn: str) -> None:
    """What the driver would fail at without saying which parameter is at fault.

    Reads the files that the TLS parameters name, as the driver will at each connection. Raises: `ConfigError`.
    """
    given = dict(parse_qsl(urlsplit(dsn).query))
    if not _PORTS.fullmatch(given.get("port", "")):
        raise ConfigError("port", "must be a number, or one for each host, separated by commas")
    if not all(map(_is_host, [*urlsplit(dsn).netloc.rpartition("@")[2].split(","), *given.get("host", "").split(",")])):
        raise ConfigError("host", "must be the name of a host, its address, or a folder with a socket")
    if given.get("sslmode") == "disable":
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        if name in given:
            with _unreadable(name, "holds no certificates" if name == "sslrootcert" else "holds no revocation list"):
                context.load_verify_locations(cafile=given[name])
    if "sslcert" in given:
        with _unreadable("sslcert", "does not fit its key: check sslkey and sslpassword"):
            context.load_cert_chain(given["sslcert"], given.get("sslkey"), lambda: given.get("sslpassword", ""))


def _is_host(quoted: str) -> bool:
    host = unquote(quoted)
    if not host.startswith("/"):
        try:
            host.partition(":")[0].encode("idna")
        except UnicodeError:
            return False
    return "\0" not in host


@contextmanager
def _unreadable(name: str, otherwise: str) -> Generator[None]:
    try:
        yield
    except ssl.SSLError as exc:
        raise ConfigError(name, otherwise) from exc
    except OSError as exc:
        also = " (or its sslkey)" if name == "sslcert" else ""
        raise ConfigError(name, f"the file{also} cannot be read: {exc.strerror}") from exc
