"""From the driver's errors to Holdfast's."""

from __future__ import annotations

from typing import Final

import redis.exceptions as driver

from holdfast.errors import OutcomeUnknown, Rejected, StoreError, Unavailable

__all__ = ["BrokenOff", "code_of", "is_of_script", "translate"]

_TYPES: Final[tuple[tuple[type[Exception], type[StoreError], str], ...]] = (
    (driver.BusyLoadingError, Unavailable, "the server is loading its data"),
    (driver.MasterDownError, Unavailable, "the server is a replica that has lost its primary"),
    (driver.ClusterDownError, Unavailable, "the cluster is down"),
    (driver.TryAgainError, Unavailable, "the cluster is moving these keys"),
    (driver.MovedError, Unavailable, "the cluster has moved these keys"),
    (driver.AskError, Unavailable, "the cluster is moving these keys"),
    (driver.ReadOnlyError, Unavailable, "the server is a read-only replica"),
    (driver.OutOfMemoryError, Unavailable, "the server is out of memory (maxmemory)"),
    (driver.NoScriptError, Unavailable, "the server keeps losing its scripts"),
    (driver.AuthenticationError, Unavailable, "access to the server is denied"),
    (driver.AuthorizationError, Unavailable, "access to the server is denied"),
    (driver.NoPermissionError, Unavailable, "access to the server is denied"),
    (driver.TimeoutError, Unavailable, "the server does not answer in time"),
    (driver.ConnectionError, Unavailable, "no connection to the server"),
    (OSError, Unavailable, "no connection to the server"),
    (RuntimeError, Unavailable, "no connection to the server"),
    (driver.DataError, Rejected, "a value cannot be sent"),
)
"""Subclasses before their bases."""

_CODES: Final[dict[str, tuple[type[StoreError], str]]] = {
    "BUSY": (Unavailable, "the server is busy with somebody's script"),
    "MISCONF": (Unavailable, "the server cannot save to its disk"),
    "NOREPLICAS": (Unavailable, "the server has too few replicas"),
    "UNBLOCKED": (Unavailable, "the server changed its role"),
    "DAMAGED": (Unavailable, "the session's log is damaged"),
    "FOREIGN": (Rejected, "another program's data is in our place"),
    "MARKER": (Rejected, "another program's data is in our place"),
    "WRONGTYPE": (Rejected, "another program's data is in our place"),
    "ERR": (Rejected, "the server refuses the command"),
}
"""Error replies that the driver has no class for, by their first word."""


class BrokenOff(OutcomeUnknown):
    """A script failed in its middle. That is final: asked again, the server knows no more."""


def code_of(error: BaseException) -> str:
    """The first word of an error reply. (The driver leaves it out of the text, if it is a usual one.)"""
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


def is_of_script(error: BaseException) -> bool:
    """Whether a script failed in its middle, and not before its first line."""
    return "@user_script" in str(error)


def translate(exc: Exception) -> StoreError:
    """The error to raise ``from exc``. It was raised or answered before anything was done."""
    for type_, kind, meaning in _TYPES:
        if isinstance(exc, type_):
            return kind(f"{meaning} ({_words(exc)})")
    if isinstance(exc, driver.ResponseError):
        kind, meaning = _CODES.get(code_of(exc), (Unavailable, "the server failed"))
        return kind(f"{meaning} ({_words(exc)})")
    if isinstance(exc, OverflowError | UnicodeEncodeError):
        return Rejected(f"a value cannot be stored: {exc}")
    return Unavailable(f"the server failed ({_words(exc)})")


def _words(exc: Exception) -> str:
    """The driver's words, in one line, if there can be no credentials in them."""
    if isinstance(exc, driver.AuthenticationError | driver.AuthorizationError | driver.NoPermissionError):
        return type(exc).__name__
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
