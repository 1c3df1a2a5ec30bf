"""One session as a sequential object: what each operation does to it, and what each must answer.

Both checkers share it; they differ in how they look for an order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

from tests.histories.history import ENDS, History, Operation, seq_of

__all__ = ["Impossible", "Log", "State", "answers", "apply", "first_state", "observed"]


class Impossible(Exception):
    """The operation cannot have done this, or have answered so, in this state."""


class Log:
    """The events so far, as ``(stream, data)``. Immutable; one that only ever grew shares its list."""

    __slots__ = ("_entries", "_length")

    def __init__(self, entries: list[tuple[str, Any]] | None = None, length: int = 0) -> None:
        self._entries: list[tuple[str, Any]] = [] if entries is None else entries
        self._length = length

    def __len__(self) -> int:
        return self._length

    def between(self, start: int, end: int) -> Sequence[tuple[str, Any]]:
        return self._entries[max(0, start) : min(end, self._length)]

    def plus(self, events: Sequence[tuple[str, Any]]) -> Log:
        entries = self._entries
        if len(entries) != self._length:  # another future has grown here
            entries = entries[: self._length]
        entries.extend(events)
        return Log(entries, len(entries))


class State(NamedTuple):
    version: int
    values: dict[str, tuple[Any, int]]
    """By key: the value, and the version that its last write made."""
    log: Log
    status: Literal["active", "closed", "deleted"] = "active"
    max_events: int | None = None
    """Only so many, the newest, are there to be read."""

    def floor_above(self, floor: int) -> int:
        """Where the log begins if nothing below ``floor`` is left."""
        return floor if self.max_events is None else max(floor, len(self.log) - self.max_events + 1)

    def key(self) -> Any:
        """Equal for equal states, and hashable."""
        return (
            self.version,
            self.status,
            tuple(sorted((key, repr(value), version) for key, (value, version) in self.values.items())),
            repr(self.log.between(0, len(self.log))),
        )


def first_state(history: History) -> State:
    first = history.first
    return State(first.result[0], {}, Log(), max_events=first.arguments.get("max_events"))


def apply(state: State, write: Operation) -> State:
    """What ``write`` makes of the state.

    Raises: `Impossible` if it cannot happen here (a compare-and-set; whatever is written to a closed session), or
    if it is known to have answered something else.
    """
    version = state.version + 1
    if state.status == "deleted" or (state.status == "closed" and write.kind != "delete"):
        raise Impossible(f"the session is {state.status} then")
    if write.version and write.version != version:
        raise Impossible(f"it made version {write.version}, not {version}")
    if write.kind in ENDS:
        return state._replace(version=version, status="closed" if write.kind == "close" else "deleted")
    values = dict(state.values)
    log, answer = _CHANGES[write.kind](values, state.log, write.arguments, version)
    if write.happened == "yes" and answer != _told(write):
        raise Impossible(f"as version {version} it answers {answer!r:.300}")
    return state._replace(version=version, values=values, log=log)


def _told(write: Operation) -> Any:
    return [seq_of(event_id) for event_id in write.result] if write.kind == "write" else write.result


def _write(values: dict[str, Any], log: Log, arguments: dict[str, Any], version: int) -> tuple[Log, Any]:
    for key in arguments.get("removes", ()):
        values.pop(key, None)
    for key, value in arguments.get("sets", {}).items():
        values[key] = (value, version)
    events = [(stream, data) for stream, data in arguments.get("events", ())]
    first_seq = len(log) + 1
    return log.plus(events) if events else log, list(range(first_seq, first_seq + len(events)))


def _increment(values: dict[str, Any], log: Log, arguments: dict[str, Any], version: int) -> tuple[Log, Any]:
    value = values.get(arguments["key"], (0, 0))[0] + 1
    values[arguments["key"]] = (value, version)
    return log, value


def _compare_and_set(values: dict[str, Any], log: Log, arguments: dict[str, Any], version: int) -> tuple[Log, Any]:
    key = arguments["key"]
    actual = values.get(key, (None, 0))[1]
    if actual != arguments["expected"]:
        raise Impossible(f"version {actual} of {key!r} is not the expected {arguments['expected']}")
    values[key] = (arguments["value"], version)
    return log, version


def _remove(values: dict[str, Any], log: Log, arguments: dict[str, Any], version: int) -> tuple[Log, Any]:
    return log, values.pop(arguments["key"], (None, 0))[0]


def _clear(values: dict[str, Any], log: Log, arguments: dict[str, Any], version: int) -> tuple[Log, Any]:
    count = len(values)
    values.clear()
    return log, count


_CHANGES: dict[str, Callable[[dict[str, Any], Log, dict[str, Any], int], tuple[Log, Any]]] = {
    "write": _write,
    "increment": _increment,
    "compare_and_set": _compare_and_set,
    "remove": _remove,
    "clear": _clear,
}


def observed(state: State, read: Operation, floors: Collection[int]) -> bool:
    """Whether ``read`` can have answered what it did in this state.

    ``floors``: where the log may have begun then (1, if nothing was dropped).
    """
    if read.error == "SessionNotFound":
        return state.status == "deleted"
    if read.error == "SessionClosed":
        return state.status == "closed"
    if state.status == "deleted" and read.kind != "seen":  # what was read before is given out all the same
        return False
    match read.kind:
        case "get":
            value = state.values.get(read.arguments["key"])
            return bool(read.result == (None if value is None else value[0]))
        case "get_versioned":
            return bool(read.result == list(state.values.get(read.arguments["key"], (None, 0))))
        case "state":
            return bool(read.result == {key: value for key, (value, _) in state.values.items()})
        case "tail":  # it has ended: there is nothing behind what it showed
            last_seq = seq_of(read.seen[-1].event[0]) if read.seen else read.arguments["after"]
            stream = read.arguments["stream"]
            rest = state.log.between(len(state.log) if last_seq is None else last_seq, len(state.log))
            return state.status == "closed" and all(stream not in (None, where) for where, _ in rest)
        case "info" | "first":
            version, _, last_seq = read.result
            return bool(version == state.version and last_seq == len(state.log))
        case "compare_and_set":  # refused: a read of the key's version
            actual = state.values.get(read.arguments["key"], (None, 0))[1]
            return bool(actual == read.result != read.arguments["expected"])
        case "seen":
            seq = seq_of(read.result[0])
            return len(state.log) >= seq and state.log.between(seq - 1, seq)[0][1] == read.result[1]
        case "events" | "last_events":
            return any(_shows(state.log, read, state.floor_above(floor)) for floor in floors)
        case kind:
            raise AssertionError(kind)


def _shows(log: Log, read: Operation, floor: int) -> bool:
    arguments = read.arguments
    after, limit, stream = arguments.get("after", 0), arguments.get("limit"), arguments.get("stream")
    if 0 < after < floor - 1:  # that had to be an EventGap
        return False
    start = max(after, floor - 1)
    shown = [
        [seq, data]
        for seq, (where, data) in enumerate(log.between(start, len(log)), start + 1)
        if stream is None or where == stream
    ]
    if limit is not None:
        shown = shown[:limit] if read.kind == "events" else shown[len(shown) - min(limit, len(shown)) :]
    return shown == [[seq_of(event_id), data] for event_id, data in read.result]


def answers(operations: Sequence[Operation]) -> list[Operation]:
    """Everything that tells something of the state without changing it, as reads.

    Whatever was refused is one, each event that a subscription gave out, and that it ended because there will be
    no more.
    """
    reads = [
        op
        for op in operations
        if op.error in ("Conflict", "SessionClosed", "SessionNotFound")
        or (op.kind == "tail" and op.result == "ended")
        or (op.happened == "yes" and not op.is_write and op.kind not in ("trim", "tail"))
    ]
    for op in operations:
        reads += [
            dataclasses.replace(
                op, kind="seen", called_ns=seen.called_ns, returned_ns=seen.returned_ns, result=seen.event,
                happened="yes", error=None, seen=[],
            )
            for seen in op.seen
        ]  # fmt: skip
    return reads
