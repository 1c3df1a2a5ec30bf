"""From the driver's errors to Holdfast's."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]

from holdfast.errors import ConfigError, HoldfastError, OutcomeUnknown, Rejected, SchemaError, StoreError, Unavailable

__all__ = ["DRIVER_ERRORS", "is_taken_id", "translate", "translated"]

_TABLE: Final[dict[str, tuple[type[StoreError], str]]] = {
    "08": (Unavailable, "the connection to the database failed"),
    "0A": (Unavailable, "the database does not support this now"),
    "22": (Rejected, "a value cannot be stored"),
    "23": (Rejected, "the write breaks a constraint of the database"),
    "25": (Unavailable, "the database is in no state for this"),
    "25006": (Unavailable, "the database is read-only"),
    "28": (Unavailable, "the database refuses the login"),
    "3D": (Unavailable, "there is no such database"),
    "3F": (SchemaError, "the database does not have the expected schema"),
    "40": (Unavailable, "the transaction was rolled back for another one"),
    "40003": (OutcomeUnknown, "the database cannot tell what became of the transaction"),
    "42": (SchemaError, "the database does not have the expected tables"),
    "42501": (SchemaError, "the role lacks a privilege"),
    "53": (Unavailable, "the database is short of resources"),
    "53100": (Unavailable, "the database's disk is full"),
    "53300": (Unavailable, "the database takes no more connections"),
    "54": (Rejected, "a limit of the database is exceeded"),
    "55": (Unavailable, "a lock is not to be had now"),
    "55000": (Unavailable, "the database is not set up for this now"),
    "57": (Unavailable, "the database is shutting down or starting up"),
    "57014": (Unavailable, "the statement took longer than allowed"),
    "58": (Unavailable, "an I/O error of the database"),
    "XX001": (SchemaError, "the database is corrupt"),
    "XX002": (SchemaError, "the database is corrupt"),
}
"""By SQLSTATE, else by its class. Which is permanent decides whether the engine tries again."""

DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    OverflowError,
    UnicodeEncodeError,
)


def translate(exc: Exception, *, sent: bool = False) -> HoldfastError:
    """The error to raise ``from exc``. ``sent``: it struck after a commit was sent, which may have been done."""
    if isinstance(exc, asyncpg.ClientConfigurationError):
        return ConfigError("url", f"the driver cannot use it: {exc}")
    if isinstance(exc, asyncpg.DataError | OverflowError | UnicodeEncodeError) and not isinstance(
        exc, asyncpg.PostgresError
    ):
        return Rejected(f"a value cannot be stored: {exc}")
    if isinstance(exc, asyncpg.PostgresError):
        return _translate_reply(exc, sent=sent)
    kind = OutcomeUnknown if sent else Unavailable
    if isinstance(exc, asyncpg.InternalClientError) and "target" in type(exc).__name__.lower():
        return Unavailable("no server at this address takes writes")
    if isinstance(exc, TimeoutError):
        return kind("the database does not answer")
    if isinstance(exc, ssl.SSLCertVerificationError):
        return kind(f"the database's certificate is not trusted: {exc.verify_message}")
    if isinstance(exc, ssl.SSLError):
        return kind(f"TLS with the database failed: {getattr(exc, 'reason', None) or exc}")
    return kind(f"the connection to the database failed: {exc}")


def _translate_reply(exc: Any, *, sent: bool) -> StoreError:
    """Of the server's errors only those that end the connection leave open what became of a commit."""
    state: str = exc.sqlstate or ""
    kind, meaning = _TABLE.get(state) or _TABLE.get(state[:2]) or (Unavailable, "the database failed")
    if is_taken_id(exc):
        return Unavailable("other instances create a session of this id over and over")
    severity = exc.severity_en or exc.severity  # the latter is translated by the server; poolers send no other
    if sent and (state[:2] == "08" or severity in ("FATAL", "PANIC")):
        kind = OutcomeUnknown
    return kind(f"{meaning} ({state}: {exc.args[0] if exc.args else ''})")


def is_taken_id(exc: Exception) -> bool:
    """Somebody else has just created a session of the same id: tried again, the commit sees it."""
    return isinstance(exc, asyncpg.UniqueViolationError) and str(getattr(exc, "constraint_name", "")).endswith("id_key")


@contextmanager
def translated(*, sent: bool = False) -> Generator[None]:
    """Let nothing of the driver's out."""
    try:
        yield
    except DRIVER_ERRORS as exc:
        raise translate(exc, sent=sent) from exc
