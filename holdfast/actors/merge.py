"""A turn: units from the front of a mailbox, in order, merged into one `SessionWrite`.

Pure bookkeeping without I/O or waiting, so that a lane can run the turns of hundreds of actors
between two commits without a task switch each.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.actors.unit import StateView, Unit
from holdfast.backends.base import NewEvent, Outcome, SessionWrite, StateValue
from holdfast.config import Limits
from holdfast.errors import LimitExceeded
from holdfast.model import Durability

__all__ = ["Turn", "acknowledge", "append_events", "apply_state", "seal", "state_bytes"]


def _entry_bytes(key: str, raw: bytes) -> int:
    """What a state entry counts against limits and budgets (the key roughly, by characters)."""
    return len(key) + len(raw)


def state_bytes(state: dict[str, StateValue]) -> int:
    return sum(_entry_bytes(key, value.raw) for key, value in state.items())


def apply_state(state: dict[str, StateValue], write: SessionWrite, base_version: int) -> int:
    """Make ``state`` what the committed ``write`` has made of it; by how many bytes it grew."""
    delta = 0
    if write.cleared:
        delta -= state_bytes(state)
        state.clear()
    for key in (*write.removes, *write.sets):
        old = state.pop(key, None)
        if old is not None:
            delta -= _entry_bytes(key, old.raw)
    for key, (raw, offset) in write.sets.items():
        state[key] = StateValue(raw, base_version + offset)
        delta += _entry_bytes(key, raw)
    return delta


class Turn:
    """Builds ``write`` from units; the last write of a key wins.

    ``state`` is the session's committed state, exact for units with a ``compute``; ``state_bytes``
    is its size.
    """

    __slots__ = ("_limits", "_removes", "_sets", "_state", "_view", "keys", "state_bytes", "write")

    def __init__(self, write: SessionWrite, state: dict[str, StateValue], state_bytes: int, limits: Limits) -> None:
        self.write = write
        self.keys = len(state)
        self.state_bytes = state_bytes
        self._state = state
        self._view: StateView | None = None
        self._sets: dict[str, tuple[bytes, int]] = {}
        self._removes: set[str] = set()
        self._limits = limits

    def add(self, unit: Unit) -> None:
        """Merge one more unit.

        Raises: what its ``compute`` raises; `LimitExceeded` if the session's state would grow past
        its limits. The write is then as it was.
        """
        write = self.write
        if unit.compute is not None:
            unit.sets = unit.removes = unit.result = None
            unit.cleared = False
            unit.compute(self._state_view(), unit)
        if unit.sets is not None or unit.removes is not None or unit.cleared:
            self.keys, self.state_bytes = self._size_after(unit)
            write.units += 1
            self._merge_state(unit)
        elif not unit.touch_only:
            write.units += 1
        if unit.compute is not None:
            write.fenced = True
        if unit.events is not None:
            append_events(write, unit.events)
        write.floor_seq = max(write.floor_seq, unit.floor_seq)
        if unit.metadata is not None:
            write.metadata = unit.metadata
        if unit.close:
            write.close = True
        if unit.delete:
            write.delete = True

    def _merge_state(self, unit: Unit) -> None:
        write, sets, removes = self.write, self._sets, self._removes
        if unit.cleared:
            write.cleared = True
            sets.clear()
            removes.clear()
        for key in unit.removes or ():
            sets.pop(key, None)
            removes.add(key)
        for key, raw in (unit.sets or {}).items():
            removes.discard(key)
            sets[key] = (raw, write.units)
        write.sets, write.removes = sets, removes

    def _state_view(self) -> StateView:
        if self._view is None:
            self._view = StateView(self._state, self.write)
        return self._view

    def _size_after(self, unit: Unit) -> tuple[int, int]:
        """Keys and bytes of the state once ``unit`` is merged; checked only where it grows."""
        view, keys, size = self._state_view(), self.keys, self.state_bytes
        if unit.cleared:
            keys = size = 0
        for key in unit.removes or ():
            old = None if unit.cleared else view.get(key)
            if old is not None:
                keys, size = keys - 1, size - _entry_bytes(key, old.raw)
        for key, raw in (unit.sets or {}).items():
            old = None if unit.cleared else view.get(key)
            size += _entry_bytes(key, raw)
            if old is None:
                keys += 1
            else:
                size -= _entry_bytes(key, old.raw)
        limits = self._limits
        if keys > limits.max_state_keys and keys > self.keys:
            raise LimitExceeded("session state", limit=limits.max_state_keys, actual=keys, unit="keys")
        if size > limits.max_state_bytes and size > self.state_bytes:
            raise LimitExceeded("session state", limit=limits.max_state_bytes, actual=size)
        return keys, size


def append_events(write: SessionWrite, events: Sequence[NewEvent]) -> None:
    """The first events are shared with their unit, not copied: most writes have no others."""
    write.events = [*write.events, *events] if write.events else events


def seal(write: SessionWrite, taken: Sequence[Unit]) -> Durability:
    """Mark the units as taken, and note when they were accepted; the highest level that one needs."""
    level = taken[0].durability
    for unit in taken:
        unit.taken = True
        write.active_us = max(write.active_us, unit.accepted_us)
        if unit.durability.rank > level.rank:
            level = unit.durability
    write.accepted_us = taken[0].accepted_us
    return level


def acknowledge(taken: Sequence[Unit], outcome: Outcome) -> tuple[int, int]:
    """Fill in what became of each unit of a committed write, and tell who waits.

    Returns their size in bytes, and how many of them were acknowledged on acceptance.
    """
    version, seq, first_seq = outcome.base_version, outcome.base_seq, outcome.base_first_seq
    size = barriers = 0
    for unit in taken:
        size += unit.size
        if not unit.touch_only:
            version += 1
        unit.version = version
        if unit.events is not None:
            unit.first_seq = seq + 1
            seq += len(unit.events)
        if unit.floor_seq:
            floor_seq = min(unit.floor_seq, seq + 1)
            unit.dropped_events = max(0, floor_seq - first_seq)
            first_seq = max(first_seq, floor_seq)
        ack = unit.ack
        if ack is None:
            barriers += not unit.touch_only
        elif not ack.done():
            ack.set_result(None)
    return size, barriers
