"""What readers were shown of places in a session's order: it leaves few of them open.

Any order that explains the history has these events at these seqs, and these values at these versions; so a
search may drop at once what contradicts them. It need not: what is shown is checked in its own place too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tests.histories.history import Operation, seq_of
from tests.histories.model import State

__all__ = ["Evidence"]


class Evidence:
    """All that was seen in one session, by anybody."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._events: dict[int, Any] = {}
        """By seq."""
        self._values: dict[int, tuple[str, Any]] = {}
        """By version: a key that was set then, and to what."""
        self._tags = set[str]()
        for op in operations:
            self._collect(op)

    def _collect(self, op: Operation) -> None:
        for event_id, data in _events_of(op):
            self._events[seq_of(event_id)] = data
            self._tags.add(data)
        if op.happened != "yes":
            return
        match op.kind:
            case "get_versioned" if op.result[1]:
                self._values[op.result[1]] = (op.arguments["key"], op.result[0])
                self._tags.add(str(op.result[0]))
            case "get" | "remove":
                self._tags.add(str(op.result))
            case "state":
                self._tags.update(map(str, op.result.values()))
            case _:
                pass

    def seen(self, write: Operation) -> bool:
        """Whether somebody was shown something that only this write can have written."""
        arguments = write.arguments
        tags = [data for _, data in arguments.get("events", ())]
        tags += [*arguments.get("sets", {}).values(), arguments.get("value")]
        return not self._tags.isdisjoint(tags)

    def allows(self, before: State, after: State) -> bool:
        """Whether nobody saw anything else where ``after`` has what ``before`` had not."""
        first_seq = len(before.log) + 1
        for seq, (_, data) in enumerate(after.log.between(first_seq - 1, len(after.log)), first_seq):
            if self._events.get(seq, data) != data:
                return False
        if after.version not in self._values:
            return True
        key, value = self._values[after.version]
        return after.values.get(key) == (value, after.version)


def _events_of(op: Operation) -> Iterator[tuple[str, Any]]:
    if op.kind in ("events", "last_events") and op.happened == "yes":
        yield from op.result
    for seen in op.seen:
        yield seen.event[0], seen.event[1]
