"""The plain checker: try every order that real time allows.

The algorithm of Wing and Gong ("Testing and verifying concurrent objects", 1993), with Lowe's memory of
the states already tried. Exponential in how much runs at once, so for small histories only; it is here to
check the other checker.
"""

from __future__ import annotations

from tests.histories.history import History, Operation
from tests.histories.model import Impossible, State, answers, apply, first_state, observed
from tests.histories.trimming import Floors

__all__ = ["is_linearizable"]

NEVER_NS = 1 << 63


def is_linearizable(history: History) -> bool:
    """Whether the session can have been one object, each operation taking place at one moment within its call.

    What failed for certain did not happen; what never returned, or failed with its outcome unknown, may have
    happened at any moment after its call, or not at all. Reads that failed say nothing.
    """
    floors = Floors(history.operations)
    relevant = [op for op in history.operations if op.is_write and op.happened != "no"] + answers(history.operations)
    return _Search(relevant, floors).run(frozenset(range(len(relevant))), first_state(history))


class _Search:
    def __init__(self, operations: list[Operation], floors: Floors) -> None:
        self._operations = operations
        self._floors = floors
        self._tried = set[object]()

    def run(self, left: frozenset[int], state: State) -> bool:
        waiting = [self._operations[index] for index in left]
        if not any(op.happened != "unknown" or op.version for op in waiting):
            return True
        place = (left, state.key())
        if place in self._tried:
            return False
        self._tried.add(place)
        horizon_ns = min((op.returned_ns or 0 for op in waiting if op.happened != "unknown"), default=NEVER_NS)
        return any(
            self.run(left - {index}, after)
            for index in sorted(left)
            if self._operations[index].called_ns <= horizon_ns
            and (after := self._after(state, self._operations[index])) is not None
        )

    def _after(self, state: State, operation: Operation) -> State | None:
        if operation.is_write and operation.happened != "no":
            try:
                return apply(state, operation)
            except Impossible:
                return None
        return state if observed(state, operation, self._floors.during(operation)) else None
