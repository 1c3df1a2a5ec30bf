"""Every error that Holdfast raises, in one tree.

    HoldfastError
    ├── InvalidInput            refused before anything was written          (also ValueError)
    │   ├── LimitExceeded       a value, event, batch … past a configured limit
    │   ├── NotJSON             a value that JSON cannot carry exactly
    │   ├── StateTypeError      stored state does not have the asked-for type
    │   └── InvalidCursor       an event id that is malformed, foreign, or from the future
    ├── ConfigError             a setting is wrong; names the field          (also ValueError)
    ├── SessionError            carries ``session_id``
    │   ├── SessionNotFound     unknown, expired, deleted, or owned by somebody else
    │   ├── SessionExists       create of an id that is taken
    │   ├── SessionClosed       a write to a closed session
    │   ├── Conflict            compare-and-set met another version
    │   ├── EventGap            the cursor is older than the oldest event still held
    │   └── ActorCrashed        the session's actor failed; it restarts from the store
    └── StoreError
        ├── Rejected            the store refused the write for good; nothing was stored
        ├── Unavailable         the store cannot be reached now; nothing was stored
        │   └── Overloaded      a bound of the engine is reached; nothing was stored
        ├── DeadlineExceeded    the caller's deadline passed; ``stored`` is "no" or "unknown"
        ├── OutcomeUnknown      the write may or may not be stored
        ├── SchemaError         the store's schema is newer, damaged or foreign
        └── StoreClosed         the supervisor is shutting down or closed

Three outcomes of a failed write are three errors: `Conflict`, "not stored" (`Rejected`,
`Unavailable`) and "may be stored" (`OutcomeUnknown`, `DeadlineExceeded` with stored="unknown").
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ActorCrashed",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "EventGap",
    "HoldfastError",
    "InvalidCursor",
    "InvalidInput",
    "LimitExceeded",
    "NotJSON",
    "OutcomeUnknown",
    "Overloaded",
    "Rejected",
    "SchemaError",
    "SessionClosed",
    "SessionError",
    "SessionExists",
    "SessionNotFound",
    "StateTypeError",
    "StoreClosed",
    "StoreError",
    "Unavailable",
    "copy_for_caller",
]


class HoldfastError(Exception):
    """The root of the tree."""


class InvalidInput(HoldfastError, ValueError):
    """An argument is unusable. Nothing was written."""


class LimitExceeded(InvalidInput):
    """``what`` (for instance "event data") has ``actual`` ``unit``; the ``limit`` is a setting."""

    def __init__(self, what: str, *, limit: int, actual: int, unit: str = "bytes") -> None:
        super().__init__(f"{what} has {actual:,} {unit}; the limit is {limit:,} {unit}")
        self.what = what
        self.limit = limit
        self.actual = actual
        self.unit = unit


class NotJSON(InvalidInput):
    """The value at ``path`` (for instance ``state['cart'].items[2]``) cannot be stored as JSON."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class StateTypeError(InvalidInput, TypeError):
    """The stored value of ``key`` does not fit the type asked for."""

    def __init__(self, key: str, expected: str, reason: str) -> None:
        super().__init__(f"state[{key!r}] is not a {expected}: {reason}")
        self.key = key
        self.expected = expected
        self.reason = reason


class InvalidCursor(InvalidInput):
    """An event id cannot be a cursor of this session."""

    def __init__(self, cursor: str, reason: Literal["malformed", "foreign", "ahead"]) -> None:
        explanations = {
            "malformed": "is not an event id",
            "foreign": "belongs to another session, or to an earlier one of the same id",
            "ahead": "is ahead of the session's last event",
        }
        super().__init__(f"cursor {cursor[:200]!r} {explanations[reason]}")
        self.cursor = cursor
        self.reason = reason


class ConfigError(HoldfastError, ValueError):
    """The setting ``field`` (dotted, for instance ``writer.max_batch_bytes``) is unusable."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class SessionError(HoldfastError):
    """Something about one session."""

    def __init__(self, session_id: str, message: str) -> None:
        super().__init__(message)
        self.session_id = session_id


class SessionNotFound(SessionError):
    """No such session: unknown, expired, deleted, or another principal's."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id, f"no session {session_id[:200]!r}")


class SessionExists(SessionError):
    """The id is taken by a live session."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id, f"session {session_id!r} exists already")


class SessionClosed(SessionError):
    """The session is closed: it can be read, not written."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id, f"session {session_id!r} is closed")


class Conflict(SessionError):
    """``key`` is at version ``actual``, not at ``expected``. Nothing was written."""

    def __init__(self, session_id: str, key: str, *, expected: int, actual: int) -> None:
        super().__init__(
            session_id,
            f"state[{key!r}] of session {session_id!r} is at version {actual}, not at {expected}",
        )
        self.key = key
        self.expected = expected
        self.actual = actual


class EventGap(SessionError):
    """Events after ``cursor`` are gone; ``first_id`` is the oldest still held (None if none is)."""

    def __init__(self, session_id: str, cursor: str, *, first_id: str | None) -> None:
        held = f"the oldest event still held is {first_id!r}" if first_id else "no event is held"
        super().__init__(session_id, f"events after {cursor!r} are no longer held; {held}")
        self.cursor = cursor
        self.first_id = first_id


class ActorCrashed(SessionError):
    """The session's actor failed on a bug. Whether its last write is stored is unknown."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id, f"the actor of session {session_id!r} crashed and restarts")


class StoreError(HoldfastError):
    """The store, or the way to it, failed."""


class Rejected(StoreError):
    """The store refuses this write, and would again. Nothing was stored."""


class Unavailable(StoreError):
    """The store cannot serve this now. Nothing was stored; trying again later may help."""


class Overloaded(Unavailable):
    """The bound ``what`` (``limit``) stayed reached for as long as the caller may wait."""

    def __init__(self, what: str, *, limit: int) -> None:
        super().__init__(f"{what} is full ({limit:,}); nothing was stored")
        self.what = what
        self.limit = limit


class DeadlineExceeded(StoreError, TimeoutError):
    """The call's deadline passed. ``stored`` says what is known of a write."""

    def __init__(self, deadline_s: float, *, stored: Literal["no", "unknown"]) -> None:
        known = "nothing was stored" if stored == "no" else "the write may be stored"
        super().__init__(f"not done within {deadline_s:g} s; {known}")
        self.deadline_s = deadline_s
        self.stored = stored


class OutcomeUnknown(StoreError):
    """The store stopped answering in mid-commit: the write may or may not be stored."""


class SchemaError(StoreError):
    """The store's schema cannot be used. ``found`` and ``supported`` are versions."""

    def __init__(self, message: str, *, found: int | None = None, supported: int | None = None) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class StoreClosed(StoreError):
    """The supervisor takes no more work. Nothing was stored."""


def copy_for_caller(error: Exception) -> Exception:
    """The error as one caller gets it.

    One of ours is an object of its own for each of its receivers, so that their tracebacks stay
    apart. A StopIteration of a user's function is wrapped: no future would carry it.
    """
    if isinstance(error, StopIteration):
        wrapped = RuntimeError(f"the function raised {error!r}")
        wrapped.__cause__ = error
        return wrapped
    if not isinstance(error, HoldfastError):
        return error
    copy = error.__class__.__new__(error.__class__, *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
