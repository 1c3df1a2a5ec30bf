"""Where the log may begin: `delete_events_before` takes no version, so its place is known by time alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from tests.histories.history import Operation

__all__ = ["Floors"]


class Floors:
    """The lowest sequence numbers that reads may begin at."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        trims = [op for op in operations if op.kind == "trim" and op.happened != "no"]
        self._asked = sorted((op.called_ns, int(op.arguments["before"])) for op in trims)
        done = sorted(
            (op.returned_ns, int(op.arguments["before"]))
            for op in trims
            if op.happened == "yes" and op.returned_ns is not None
        )
        self._done_ns = [at_ns for at_ns, _ in done]
        self._done = [1]
        for _, floor in done:
            self._done.append(max(self._done[-1], floor))

    def during(self, operation: Operation) -> list[int]:
        """Each floor that may have been in force at some moment of the call."""
        surely = self._done[bisect_left(self._done_ns, operation.called_ns)]
        end_ns = operation.returned_ns
        return sorted(
            {surely} | {floor for at_ns, floor in self._asked if floor > surely and (end_ns is None or at_ns < end_ns)}
        )
