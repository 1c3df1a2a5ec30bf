"""What readers saw of a log, held against each other: no versions, no order of writes, no search.

A second, independent look at the same histories (`check`), for one session:

- an id means the same event for everybody, for ever;
- whoever was shown the events up to seq n was shown every one of them from its cursor on (of its stream, if it
  asked for one): what was not there then never appears below n later. Only dropped events may be missing,
  and only at the front;
- a subscription gives each event once, in order, and misses none that was appended after it had begun;
- a read that begins after another has returned sees the log at least as long.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from tests.histories.history import History, Operation, seq_of
from tests.histories.trimming import Floors

__all__ = ["check"]


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A part of the log, as it was shown to somebody: all of ``stream`` after ``after`` up to its last."""

    operation: Operation
    after: int
    stream: str | None
    events: list[list[Any]]
    returned_ns: int


def check(history: History) -> list[str]:
    """What is wrong, in words; nothing if all is well."""
    return _Checker(history).run()


class _Checker:
    def __init__(self, history: History) -> None:
        self._operations = history.operations
        self._max_events: int | None = history.first.arguments.get("max_events")
        self._floors = Floors(history.operations)
        self._data: dict[str, Any] = {}
        self._ids: dict[int, str] = {}
        self._faults: list[str] = []

    def run(self) -> list[str]:
        shown = [*self._reads(), *self._subscriptions()]
        for op in self._operations:
            if op.kind == "write" and op.happened == "yes":
                for event_id, (_, data) in zip(op.result, op.arguments.get("events", ()), strict=True):
                    self._note(event_id, data, op)
        for part in shown:
            for event_id, data in part.events:
                self._note(event_id, data, part.operation)
        for part in shown:
            self._check_complete(part)
        self._check_growth()
        self._check_trims()
        return self._faults

    def _reads(self) -> Iterable[_Shown]:
        for op in self._operations:
            if op.happened != "yes" or op.kind not in ("events", "last_events"):
                continue
            after = op.arguments.get("after", 0)
            if op.kind == "last_events" and len(op.result) == op.arguments["limit"]:
                after = seq_of(op.result[0][0]) - 1 if op.result else 0
            yield _Shown(op, after, op.arguments.get("stream"), op.result, op.returned_ns or 0)

    def _subscriptions(self) -> Iterable[_Shown]:
        for op in self._operations:
            events = [seen.event for seen in op.seen]
            if not events:
                continue
            after = op.arguments["after"]
            if after is None:  # only what comes: at the latest what was appended after it had begun
                first_seq = seq_of(events[0][0])
                after = first_seq - 1
                self._check_begin(op, first_seq)
            yield _Shown(op, after, op.arguments.get("stream"), events, op.seen[-1].returned_ns)

    def _check_begin(self, op: Operation, first_seq: int) -> None:
        assert op.began_ns is not None
        for write in self._operations:
            if write.kind == "write" and write.happened == "yes" and write.called_ns > op.began_ns:
                missed = [
                    event_id
                    for event_id, (stream, _) in zip(write.result, write.arguments.get("events", ()), strict=True)
                    if seq_of(event_id) < first_seq and op.arguments.get("stream") in (None, stream)
                ]
                if missed:
                    self._faults.append(f"{op} had begun, and missed {missed} of {write}")

    def _note(self, event_id: str, data: Any, op: Operation) -> None:
        if self._data.setdefault(event_id, data) != data:
            self._faults.append(f"id {event_id} is {self._data[event_id]!r}, and {data!r} in {op}")
        if self._ids.setdefault(seq_of(event_id), event_id) != event_id:
            self._faults.append(f"seq {seq_of(event_id)} has id {self._ids[seq_of(event_id)]}, and {event_id} in {op}")

    def _check_complete(self, part: _Shown) -> None:
        seqs = [seq_of(event_id) for event_id, _ in part.events]
        if not seqs:
            return
        present = set(seqs)
        floors = self._floors.during(part.operation)
        if seqs[0] < floors[0]:
            self._faults.append(f"{part.operation} shows {seqs[0]}; what is below {floors[0]} was dropped before")
        start = part.after + 1
        if part.after == 0 and self._max_events is not None:
            start = seqs[0]
        elif part.after == 0:  # no cursor: whatever is held
            start = max((floor for floor in floors if floor <= seqs[0]), default=1)
        missing = [
            seq
            for seq in range(start, seqs[-1] + 1)
            if seq not in present and (part.stream is None or self._stream_of(seq) == part.stream)
        ]
        if missing:
            self._faults.append(f"{part.operation} did not show {missing[:5]}, but {seqs[-1]}: not there then, or lost")
        if seqs != sorted(present):
            self._faults.append(f"{part.operation} shows events twice, or out of order")
        if part.stream is not None and any(self._stream_of(seq) != part.stream for seq in seqs):
            self._faults.append(f"{part.operation} shows another stream")

    def _stream_of(self, seq: int) -> str | None:
        """None: nobody ever saw it."""
        event_id = self._ids.get(seq)
        return None if event_id is None else event_id.split(".", 2)[2]

    def _check_growth(self) -> None:
        lengths = [(op, op.result[2]) for op in self._operations if op.kind == "info" and op.happened == "yes"]
        lengths += [
            (op, seq_of(op.result[-1][0]))
            for op in self._operations
            if op.kind == "last_events" and op.happened == "yes" and op.result and op.arguments.get("stream") is None
        ]
        lengths.sort(key=lambda entry: entry[0].returned_ns or 0)
        returned_ns = [op.returned_ns or 0 for op, _ in lengths]
        longest = [0]
        for _, length in lengths:
            longest.append(max(longest[-1], length))
        for op, length in lengths:
            before = longest[bisect_left(returned_ns, op.called_ns)]
            if length < before:
                self._faults.append(f"{op} sees {length} events; another read had seen {before}")

    def _check_trims(self) -> None:
        """Each trim says how many it dropped; together (and with ``max_events``) that is where the log begins."""
        trims = [op for op in self._operations if op.kind == "trim" and op.happened != "no"]
        dropped = sum(op.result for op in trims if op.happened == "yes")
        infos = [op for op in self._operations if op.kind == "info" and op.happened == "yes"]
        for op in infos:
            possible = {max(floor, self._oldest(op.result[2])) for floor in self._floors.during(op)}
            if op.result[1] not in possible:
                self._faults.append(f"{op}: the log cannot begin there: {possible}")
        last = max(infos, key=lambda op: op.called_ns, default=None)
        ended_ns = max((op.returned_ns or 0 for op in trims), default=0)
        if last is not None and last.called_ns > ended_ns and self._max_events is None:
            gone = last.result[1] - 1
            if dropped > gone or (dropped < gone and all(op.happened == "yes" for op in trims)):
                self._faults.append(f"trims dropped {dropped} events; gone are {gone}")
        for op in self._operations:
            after = op.arguments.get("after", 0)
            floor = max(self._floors.during(op)[-1], self._oldest(max(self._ids, default=0)))
            if op.error == "EventGap" and after is not None and floor <= after + 1:
                self._faults.append(f"{op}: nothing after the cursor was dropped")

    def _oldest(self, last_seq: int) -> int:
        """Of those that ``max_events`` keeps."""
        return 1 if self._max_events is None else max(1, last_seq - self._max_events + 1)
