"""The clever checker: linearizability of long histories, by the places that writes know they have.

Each acknowledged write comes with the session's version that it made, so the history brings its own
total order of writes, and only has to be checked against it. It does not matter where that order comes
from: an order that passes *is* a linearization, so nothing here rests on trust in the engine.

What is proved, if `check` finds nothing, for one session as one object (all its keys, their versions, and
its log):

- there is one order of all operations in which each answered what it must, one after the other: increments
  lose nothing, of racing removers one gets the value, compare-and-set wins or is refused rightly, the
  events of a unit stand together with its keys, and seqs count from 1 without gaps;
- that order keeps real time: what returned before something else was called, in whichever process, comes
  first. So every read sees all that was acknowledged anywhere before it began, and nothing that it saw is
  unseen by a later read; events given out by a subscription count as reads;
- versions are the places in that order, without a gap or a double;
- nothing is written to a session once it is closed, or read once it is deleted, in any process; subscriptions
  to a closed one end, behind its last event;
- with ``max_events``, reads show the newest so many and never one more;
- what failed for certain did not happen; what was in flight at a ``kill -9``, was cancelled, or failed
  with `OutcomeUnknown` happened once, at one place after its call, or not at all.

How. Writes with a version are in their places. A version that nobody was told belongs to one of the writes
with an unknown outcome, if any fits: these are few, and tried one after the other, with backtracking; first
those that somebody has seen something of, and none that makes what nobody saw (`Evidence`). Reads
are put in by the order of their returns, each at the first version that shows what it saw, not before
what had returned when it was called. The first place is the best: whatever is possible with a later one is
possible with it. So for a given order of writes this is exact and linear in the length of the history.

Trims (`delete_events_before`) take no version. They are checked by time: a read of the log begins at a floor
that was in force at some moment of the read.

Left out, because less is promised: reads with ``cached=True`` (of what this process knows, perhaps old), and
writes acknowledged at ``durability="memory"`` (before they are stored: a kill may lose them). An event that a
subscription gives out may have been dropped since it was read.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left

from tests.histories.evidence import Evidence
from tests.histories.history import History, Operation
from tests.histories.model import Impossible, answers, apply, first_state, observed
from tests.histories.trimming import Floors

__all__ = ["Undecided", "check"]

NEVER_NS = 1 << 63
MAX_STEPS = 300_000


class Undecided(Exception):
    """Too many ways to explain the writes whose outcome is unknown."""


def check(history: History) -> list[str]:
    """What is wrong with the history, in words; nothing if it is linearizable.

    Raises: `Undecided`.
    """
    return _Checker(history).run()


class _Order:
    """The known places of writes, in real time; and of reads that tell the version."""

    def __init__(self, known: list[Operation], reads: list[Operation], base_version: int) -> None:
        told = [(op, int(op.result[0])) for op in reads if op.kind == "info" and op.happened == "yes"]
        returned = sorted(
            [(op.returned_ns or 0, op.version) for op in known if op.happened == "yes"]
            + [(op.returned_ns or 0, version) for op, version in told]
        )
        self._returned_ns = [at_ns for at_ns, _ in returned]
        self._highest = [base_version]
        for _, version in returned:
            self._highest.append(max(self._highest[-1], version))
        called = sorted(
            [(op.called_ns, op.version) for op in known] + [(op.called_ns, version + 1) for op, version in told],
            reverse=True,
        )
        self._called_ns = [-at_ns for at_ns, _ in called]
        self._lowest = [NEVER_NS]
        for _, version in called:
            self._lowest.append(min(self._lowest[-1], version))

    def at_least(self, called_ns: int) -> int:
        """The highest version that somebody was told of before the call."""
        return self._highest[bisect_left(self._returned_ns, called_ns)]

    def below(self, returned_ns: int) -> int:
        """The lowest version that can only have been made after the return."""
        return self._lowest[bisect_left(self._called_ns, -returned_ns)]


@dataclasses.dataclass(frozen=True)
class _Read:
    """A read, and the versions it may have seen as far as the known writes say."""

    operation: Operation
    floors: list[int]
    lowest: int
    highest: int
    rank: int
    """So many reads had returned when it was called."""


class _Checker:
    def __init__(self, history: History) -> None:
        operations = history.operations
        first = first_state(history)
        self._base = first.version
        writes = [op for op in operations if op.is_write and op.happened != "no"]
        self._known = [op for op in writes if op.version]
        self._evidence = Evidence(operations)
        self._unknown = sorted(
            (op for op in writes if not op.version), key=lambda op: (not self._evidence.seen(op), -op.called_ns)
        )
        """What somebody saw first, then the latest: what happened at all mostly happened soon."""
        self._order = _Order(self._known, operations, self._base)
        self._at = {op.version: op for op in self._known}
        self._last = max(self._at, default=self._base)
        self._reads = self._find_reads(operations)
        self._states = [first]
        self._furthest: list[int] = [self._base]
        """The highest place among the first n reads."""
        self._placed: list[tuple[int, Operation]] = []
        """Versions given to writes of unknown outcome."""
        self._fault = (0, "")
        self._hopeless = False
        """No later version can explain the read that was not to be placed."""
        self._behind = 0
        """So many writes may be placed behind the last known one. With more, and a wrong choice of who filled a
        gap, all orders of the others were tried before the next choice: few first."""
        self._cut = False
        """More would have been tried."""
        self._steps = 0

    def _find_reads(self, operations: list[Operation]) -> list[_Read]:
        floors = Floors(operations)
        answered = sorted(answers(operations), key=lambda op: op.returned_ns or 0)
        returned_ns = [op.returned_ns or 0 for op in answered]
        return [
            _Read(
                op,
                floors.during(op),
                self._order.at_least(op.called_ns),
                self._latest(op),
                bisect_left(returned_ns, op.called_ns),
            )
            for op in answered
        ]

    def _latest(self, read: Operation) -> int:
        """The last version that it can have seen."""
        latest = self._order.below(read.returned_ns or 0) - 1
        return min(latest, int(read.result[0])) if read.kind == "info" and read.happened == "yes" else latest

    def run(self) -> list[str]:
        faults = self._misplaced()
        if faults:
            return faults
        for behind in range(len(self._unknown) + 1):
            self._behind, self._cut = behind, False
            if self._explain(self._base + 1):
                return []
            del self._states[1:], self._furthest[1:]
            if not self._cut:
                break
        return [self._fault[1]]

    def _misplaced(self) -> list[str]:
        """What is wrong with the known places themselves."""
        faults = list[str]()
        for op in self._known:
            if self._at[op.version] is not op:
                faults.append(f"two writes made one version: {op}; {self._at[op.version]}")
            if op.version <= self._order.at_least(op.called_ns):
                faults.append(
                    f"{op} comes before version {self._order.at_least(op.called_ns)}, acknowledged before its call"
                )
        return faults

    def _explain(self, version: int) -> bool:
        """Whether the history from ``version`` on can be explained, the places before it being settled."""
        while version <= self._last:
            write = self._at.get(version)
            if write is None:
                self._blame(f"version {version} is nobody's, or nobody's that fits")
                return self._explain_gap(version)
            if not self._step(version, write):
                return False
            version += 1
        if self._place_reads(NEVER_NS):
            return True
        if self._hopeless:
            return False
        if version - self._last > self._behind:
            self._cut = True
            return False
        return self._explain_gap(version)  # what nobody was told of may still have been seen

    def _explain_gap(self, version: int) -> bool:
        used = {id(write) for _, write in self._placed}
        marks = len(self._states), len(self._furthest)
        for write in self._unknown:
            if id(write) in used or self._order.at_least(write.called_ns) >= version:
                continue
            self._placed.append((version, write))
            if self._step(version, write) and self._fits() and self._explain(version + 1):
                return True
            self._placed.pop()
            del self._states[marks[0] :], self._furthest[marks[1] :]
        return False

    def _fits(self) -> bool:
        """Whether the last step made nothing that was seen to be different."""
        before, after = self._states[-2:]
        return self._evidence.allows(before, after)

    def _step(self, version: int, write: Operation) -> bool:
        """Let ``write`` happen; place the reads that can have seen nothing later than the version before."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Undecided(f"the furthest fault: {self._fault[1]}")
        if not self._place_reads(version - 1):
            return False
        try:
            self._states.append(apply(self._states[-1], write))
        except Impossible as exc:
            self._blame(f"{write}: {exc}")
            return False
        return True

    def _place_reads(self, version: int) -> bool:
        """All that must be placed by ``version``, which is the last one settled (or beyond it, at the end)."""
        while len(self._furthest) <= len(self._reads):
            read = self._reads[len(self._furthest) - 1]
            if read.highest > version:
                return True
            place = self._place(read)
            if place is None:
                return False
            self._furthest.append(max(self._furthest[-1], place))
        return True

    def _place(self, read: _Read) -> int | None:
        """The first version that shows what it saw."""
        lowest = max(read.lowest, self._furthest[read.rank])
        highest = min(read.highest, self._states[-1].version)
        for version, write in self._placed:
            if write.called_ns > (read.operation.returned_ns or 0):
                highest = min(highest, version - 1)
        for state in self._states[lowest - self._base : highest - self._base + 1]:
            if observed(state, read.operation, read.floors):
                return state.version
        self._hopeless = read.highest <= self._states[-1].version
        self._blame(f"{read.operation}: no version from {lowest} to {highest} shows this{self._nearby(lowest)}")
        return None

    def _nearby(self, version: int) -> str:
        """What the read could have shown at the earliest, for the report."""
        if version - self._base >= len(self._states):
            return ""
        state = self._states[version - self._base]
        return f"; at version {version}: {state.values!r:.400}, {len(state.log)} events"

    def _blame(self, reason: str) -> None:
        """The report is of the explanation that got furthest, and of what first stood in its way."""
        if len(self._states) > self._fault[0]:
            self._fault = (len(self._states), reason)
