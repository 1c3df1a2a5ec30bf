"""A unit: the message in a session's mailbox, applied whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from holdfast.backends.base import NewEvent, SessionWrite, StateValue
from holdfast.model import Durability
from holdfast.waiting import Ack

__all__ = ["Compute", "StateView", "Unit"]


class Unit(msgspec.Struct, kw_only=True, gc=False):
    """One caller's atomic unit of work.

    The first part says what to do: first ``cleared``, then ``removes`` and ``sets`` (no key in
    both). A unit with ``compute`` reads before it writes: it is called in its turn with the state
    as of all units before it, fills ``removes``, ``sets`` and ``result``, and may be called again
    if another instance wrote in between. The second part is filled in when it is settled.
    """

    accepted_us: int
    size: int
    durability: Durability
    ack: Ack | None
    """None: nobody waits (a touch, or a write acknowledged on acceptance)."""
    keys: int = 1
    """Keys that it sets or removes (roughly, of one with ``compute``)."""
    cleared: bool = False
    sets: dict[str, bytes] | None = None
    removes: set[str] | None = None
    events: Sequence[NewEvent] | None = None
    metadata: bytes | None = None
    floor_seq: int = 0
    close: bool = False
    delete: bool = False
    touch_only: bool = False
    """Takes no version of its own: it only keeps the session alive, or moves ``floor_seq``."""
    compute: Compute | None = None
    only_events: bool = False
    """It appends and does nothing else, so merging it cannot fail."""

    taken: bool = False
    """A flush holds it: giving up waiting no longer prevents it."""
    doubted: int = 0
    """It failed on state that may have been old: a load of this number or a later one can tell. 0: it did not."""
    withdrawn: bool = False
    """Its caller gave up before a flush took it: to be skipped."""
    result: Any = None
    version: int = 0
    """The session's version that this unit made."""
    first_seq: int = 0
    """The sequence number of its first event."""
    dropped_events: int = 0
    """How many events ``floor_seq`` removed."""


Compute = Callable[["StateView", Unit], None]


class StateView:
    """A session's state in the middle of a turn: committed state with the turn's writes over it."""

    __slots__ = ("_state", "_write")

    def __init__(self, state: dict[str, StateValue], write: SessionWrite) -> None:
        self._state = state
        self._write = write

    def get(self, key: str) -> StateValue | None:
        write = self._write
        pending = write.sets.get(key)
        if pending is not None:
            raw, offset = pending
            return StateValue(raw, write.version + offset)
        if write.cleared or key in write.removes:
            return None
        return self._state.get(key)

    def keys(self) -> set[str]:
        write = self._write
        kept = set[str]() if write.cleared else self._state.keys() - write.removes
        return kept | write.sets.keys()
