"""Expiry and trimming, in transactions of bounded size; what one instance has in hand, others pass over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from holdfast.backends.base import Expired, TrimPolicy
from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.names import Names
from holdfast.errors import Unavailable

__all__ = [
    "MAX_EXPIRED",
    "MAX_SCANNED_EVENTS",
    "MAX_TRIMMED",
    "PageSize",
    "Place",
    "expire_some",
    "retain_some",
    "trim_some",
]

_SCANNED_SESSIONS: Final = 1_000
"""That one transaction looks at, and locks, at most."""

MAX_EXPIRED: Final = 1_000
MAX_TRIMMED: Final = 10_000
MAX_SCANNED_EVENTS: Final = 100_000
"""That one transaction reads, to apply a policy."""


class PageSize:
    """How much one transaction takes on: less after one that took longer than a statement may, then more by and by."""

    def __init__(self, most: int) -> None:
        self._most: Final = most
        self.now = most

    def shrink(self, exc: Unavailable) -> bool:
        """Whether that was the reason, and less may do."""
        if self.now == 1 or not isinstance(exc.__cause__, asyncpg.QueryCanceledError):
            return False
        self.now //= 2
        return True

    def grow(self) -> None:
        self.now = min(self._most, self.now + self.now // 8 + 1)


async def expire_some(connection: Connection, names: Names, now_us: int, limit: int) -> tuple[list[Expired], bool]:
    """Remove up to ``limit`` of those that are due; whether there may be more that are."""
    scanned, ids, incarnations, owners = await connection.fetchrow(
        names.sql("SELECT * FROM @expire($1, $2, $3)"), now_us, limit, _SCANNED_SESSIONS
    )
    gone = [
        Expired(session_id, incarnation, None if owner is None else owner.decode())
        for session_id, incarnation, owner in zip(ids or (), incarnations or (), owners or (), strict=True)
    ]
    return gone, scanned == _SCANNED_SESSIONS or len(gone) == limit


class Place(NamedTuple):
    """How far a walk of `retain_some` has come: all sessions before ``start`` are done.

    Of that one's events, those from ``before`` on have ``size_bytes`` (None: none has been looked at).
    """

    start: int
    before: int | None = None
    size_bytes: int = 0


async def retain_some(
    connection: Connection,
    names: Names,
    incarnations: Sequence[int] | None,
    place: Place,
    policy: TrimPolicy,
    max_events: int,
) -> Place | None:
    """Apply the policy to some sessions, of all or the given ones; looks at ``max_events`` of them, or a few more.

    Returns where to go on (None: the end), which may be in the middle of a session.
    """
    start, before, size_bytes = await connection.fetchrow(
        names.sql("SELECT * FROM @retain($1, $2, $3, $4, $5, $6, $7, $8)"),
        incarnations,
        *place,
        _SCANNED_SESSIONS,
        max_events,
        policy.min_time_us,
        policy.max_bytes,
    )
    return None if start is None else Place(start, before, size_bytes or 0)


async def trim_some(
    connection: Connection, names: Names, incarnations: Sequence[int] | None, limit: int
) -> tuple[int, bool]:
    """Delete rows of dropped events; how many, and whether there may be more of them."""
    deleted, taken = await connection.fetchrow(
        names.sql("SELECT * FROM @trim($1, $2, $3)"), incarnations, limit, _SCANNED_SESSIONS
    )
    return deleted, deleted == limit or taken == _SCANNED_SESSIONS
