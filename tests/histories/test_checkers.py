"""The checkers themselves: histories made by hand, good and bad, and the two checkers held against each other."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from tests.histories import certificate, visibility
from tests.histories.exhaustive import is_linearizable
from tests.histories.history import History, Operation, Recorder, Seen, read_operations
from tests.histories.model import Impossible, Log, State, apply

FIRST = Operation(
    process="driver", number=0, session="s", kind="first", arguments={}, called_ns=0, returned_ns=1, result=[1, 1, 0],
    happened="yes",
)  # fmt: skip
"""Every history begins with an empty session at version 1."""


def op(
    called: int, returned: int | None, kind: str, result: Any = None, version: int = 0, **arguments: Any
) -> Operation:
    """One that returned, or (``returned`` None) never did."""
    return Operation(
        process="p", number=called, session="s", kind=kind, arguments=arguments, called_ns=called,
        returned_ns=returned, result=result, version=version, happened="unknown" if returned is None else "yes",
    )  # fmt: skip


def refused(called: int, returned: int, error: str, result: Any = None, **arguments: Any) -> Operation:
    return dataclasses.replace(op(called, returned, "compare_and_set", result, **arguments), error=error, happened="no")


def append(called: int, returned: int | None, data: str, seq: int = 0, version: int = 0) -> Operation:
    return op(called, returned, "write", [f"i.{seq}."] if seq else None, version, events=[["", data]])


def put(called: int, returned: int | None, value: str, version: int = 0, key: str = "k") -> Operation:
    return op(called, returned, "write", [], version, sets={key: value})


def events(called: int, returned: int, *found: tuple[int, str], **arguments: Any) -> Operation:
    return op(called, returned, "events", [[f"i.{seq}.", data] for seq, data in found], **arguments)


def tail(called: int, begun: int, after: int | None, *seen: tuple[int, int, str]) -> Operation:
    """``seen``: when, seq and data."""
    return dataclasses.replace(
        op(called, None, "tail", after=after),
        began_ns=begun,
        seen=[Seen(at, at + 1, [f"i.{seq}.", data]) for at, seq, data in seen],
    )


def ended(called: int, returned: int, after: int) -> Operation:
    """A subscription that says that there will be no more."""
    return op(called, returned, "tail", "ended", after=after, stream=None)


def late(called: int, returned: int, error: str, kind: str = "compare_and_set") -> Operation:
    """What is refused because the session has ended."""
    return dataclasses.replace(refused(called, returned, error, key="k", expected=0, value="z"), kind=kind)


def history(*operations: Operation) -> History:
    return History("s", [FIRST, *operations])


A, B, C = append(10, 20, "a", 1, 2), append(30, 40, "b", 2, 3), append(50, 60, "c", 3, 4)

GOOD = {
    "one after the other": [A, B, C, events(70, 80, (1, "a"), (2, "b"), (3, "c"))],
    "a read during a write sees it": [A, events(25, 35, (1, "a"), (2, "b")), append(28, 90, "b", 2, 3)],
    "or does not": [A, events(25, 35, (1, "a")), append(28, 90, "b", 2, 3)],
    "two at once, the later call first": [append(10, 30, "b", 2, 3), append(20, 40, "a", 1, 2)],
    "a kill: it happened, unseen": [put(10, None, "x"), put(20, 30, "y", 3)],
    "a kill: it happened, seen": [put(10, None, "x"), op(20, 30, "get", "x", key="k"), put(40, 50, "y", 3)],
    "a kill: it did not happen": [put(10, None, "x"), op(20, 30, "get", None, key="k"), put(40, 50, "y", 2)],
    "a kill: it happens long after": [
        put(10, None, "x"), op(20, 30, "get", None, key="k"), put(40, 50, "y", 2), op(60, 70, "get", "x", key="k"),
    ],
    "two kills, in the one order that explains the read": [
        op(10, None, "write", None, sets={"k": "x"}),
        op(11, None, "write", None, sets={"k": "y"}),
        put(20, 30, "z", 4, key="l"),
        op(40, 50, "state", {"k": "x", "l": "z"}),
    ],
    "a cancelled write that is known to have happened": [
        dataclasses.replace(put(10, 15, "x", 2), happened="unknown", error="cancelled"), put(20, 30, "y", 3),
    ],
    "increments and removes": [
        op(10, 20, "increment", 1, 2, key="n"), op(30, 40, "increment", 2, 3, key="n"),
        op(50, 60, "remove", 2, 4, key="n"), op(70, 80, "remove", None, 5, key="n"), op(90, 95, "clear", 0, 6),
    ],
    "compare-and-set": [
        put(10, 20, "x", 2), op(30, 40, "get_versioned", ["x", 2], key="k"),
        op(50, 60, "compare_and_set", 3, 3, key="k", expected=2, value="y"),
        refused(70, 80, "Conflict", 3, key="k", expected=2, value="z"),
        op(90, 95, "info", [3, 1, 0]),
    ],
    "what failed for certain did not happen": [
        refused(10, 20, "Unavailable", "", key="k", expected=0, value="y"), op(30, 40, "get", None, key="k"),
    ],
    "a subscription": [A, tail(12, 15, 0, (21, 1, "a"), (40, 2, "b")), B],
    "only new events": [A, tail(22, 25, None, (40, 2, "b")), B],
    "dropped events": [
        A, B, C, op(65, 75, "trim", 2, before=3), events(70, 80, (1, "a"), (2, "b"), (3, "c")),
        events(90, 95, (3, "c"), after=0), op(96, 97, "info", [4, 3, 3]),
    ],
    "an end": [
        A, tail(12, 15, 0, (21, 1, "a")), op(30, 40, "close", True, 3), ended(35, 42, after=1),
        late(45, 50, "SessionClosed"), events(51, 52, (1, "a")), op(53, 60, "delete", True, 4),
        late(61, 62, "SessionNotFound"), late(63, 64, "SessionNotFound", "get"),
    ],
    "an end in whose midst a worker is killed": [
        put(10, 20, "x", 2), op(30, None, "close"), late(45, 50, "SessionClosed"), late(60, 70, "SessionClosed"),
    ],
    "a write before the end that it ran beside": [put(10, 40, "x", 2), op(30, 35, "close", True, 3)],
    "last events": [A, B, op(50, 60, "last_events", [["i.2.", "b"]], limit=1)],
}  # fmt: skip

BAD = {
    "a lost update": [op(10, 30, "increment", 1, 2, key="n"), op(20, 40, "increment", 1, 3, key="n")],
    "a lost write": [put(10, 20, "x", 2), op(30, 40, "state", {})],
    "a stale read": [
        put(10, 20, "x", 2), put(30, 40, "y", 3), op(50, 60, "get", "x", key="k"),
    ],
    "a read that goes back": [
        put(10, 20, "x", 2), put(30, 90, "y", 3), op(50, 60, "get", "y", key="k"), op(70, 80, "get", "x", key="k"),
    ],
    "a read of the future": [op(10, 20, "get", "x", key="k"), put(30, 40, "x", 2)],
    "a version out of real time": [put(10, 20, "x", 3), put(30, 40, "y", 2)],
    "a version twice": [put(10, 30, "x", 2), put(20, 40, "y", 2)],
    "a version that is nobody's": [put(10, 20, "x", 2), put(30, 40, "y", 4)],
    "a killed write that happened twice": [
        put(10, None, "x"), op(20, 30, "get", "x", key="k"), put(40, 50, "y", 3), op(60, 70, "get", "x", key="k"),
    ],
    "a killed write that happened before its call": [op(10, 20, "get", "x", key="k"), put(30, None, "x")],
    "what failed for certain happened": [
        refused(10, 20, "Unavailable", "", key="k", expected=0, value="y"), op(30, 40, "get", "y", key="k"),
    ],
    "an event that becomes visible below a higher one": [
        A, B, events(70, 80, (2, "b")), events(90, 95, (1, "a"), (2, "b")),
    ],
    "a duplicate append": [
        A, append(30, 40, "b", 3, 4), events(50, 60, (1, "a"), (2, "a"), (3, "b")),
    ],
    "a number twice": [append(10, 30, "a", 1, 2), append(20, 40, "b", 1, 3)],
    "a number left out": [A, append(30, 40, "b", 3, 3)],
    "a unit in two halves": [
        op(10, 40, "write", ["i.1."], 2, sets={"k": "x"}, events=[["", "a"]]),
        events(15, 20, (1, "a")), op(25, 30, "get", None, key="k"),
    ],
    "two winners of one compare-and-set": [
        op(10, 30, "compare_and_set", 2, 2, key="k", expected=0, value="x"),
        op(20, 40, "compare_and_set", 3, 3, key="k", expected=0, value="y"),
    ],
    "a conflict with nobody": [
        put(10, 20, "x", 2), refused(30, 40, "Conflict", 2, key="k", expected=2, value="y"),
    ],
    "two removers got the value": [
        put(10, 20, "x", 2), op(30, 50, "remove", "x", 3, key="k"), op(40, 60, "remove", "x", 4, key="k"),
    ],
    "a subscription shows what is not stored": [A, tail(12, 15, 0, (21, 1, "a"), (22, 2, "b")), B],
    "shown, then gone": [A, tail(12, 15, 0, (21, 1, "a")), events(30, 40)],
    "an event of other data": [A, events(30, 40, (1, "b"))],
    "dropped without a gap error": [A, B, C, op(61, 62, "trim", 2, before=3), events(70, 80, (3, "c"), after=1)],
    "written to when it is closed": [op(10, 20, "close", True, 2), put(30, 40, "x", 3)],
    "closed twice": [op(10, 30, "close", True, 2), op(20, 40, "close", True, 3)],
    "closed by nobody": [A, late(45, 50, "SessionClosed")],
    "open again": [op(10, 20, "close", True, 2), late(30, 40, "SessionNotFound")],
    "there again when it is deleted": [A, op(30, 40, "delete", True, 3), op(50, 60, "get", None, key="k")],
    "a subscription that ends too early": [A, B, ended(45, 60, after=1), op(61, 70, "close", True, 4)],
    "a subscription that ends before the last event": [A, B, op(45, 50, "close", True, 4), ended(55, 60, after=1)],
    "dropped, and shown all the same": [A, B, op(61, 62, "trim", 1, before=2), events(70, 80, (1, "a"), (2, "b"))],
}  # fmt: skip

UNSEEN_BY_ORDER = {
    "an event missing from a subscription": [A, B, C, tail(5, 6, 0, (70, 1, "a"), (71, 3, "c"))],
    "an event given twice": [A, B, tail(5, 6, 0, (70, 1, "a"), (71, 2, "b"), (72, 2, "b"))],
    "a subscription that begins too late": [A, tail(2, 5, None, (70, 2, "b")), B],
    "a gap error for nothing": [A, dataclasses.replace(refused(30, 40, "EventGap", after=0), kind="events")],
    "a trim that counts wrong": [A, B, op(61, 62, "trim", 2, before=2), op(70, 80, "info", [3, 2, 2])],
    "a log that begins elsewhere": [A, B, op(61, 62, "trim", 1, before=2), op(70, 80, "info", [3, 1, 2])],
}
"""What no order of operations is about, and the other checker sees."""

BROKEN_VISIBILITY = [
    "an event that becomes visible below a higher one", "an event of other data", "a number twice",
    "dropped without a gap error", "dropped, and shown all the same",
]  # fmt: skip
"""Which of the bad ones readers alone can tell."""


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    it = history(*GOOD[name])
    assert is_linearizable(it)
    assert certificate.check(it) == []
    assert visibility.check(it) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_caught(name: str) -> None:
    it = history(*BAD[name])
    assert not is_linearizable(it)
    assert len(certificate.check(it)) > 0


@pytest.mark.parametrize("name", [*UNSEEN_BY_ORDER, *BROKEN_VISIBILITY])
def test_broken_visibility_is_caught(name: str) -> None:
    assert len(visibility.check(history(*(UNSEEN_BY_ORDER | BAD)[name]))) > 0


def test_a_kill_leaves_an_operation_without_an_end(tmp_path: Any) -> None:
    recorder = Recorder(tmp_path / "w.jsonl")
    number = recorder.called("s", "get", {"key": "k"})
    recorder.returned(number, "x")
    cancelled = recorder.called("s", "write", {"sets": {}})
    recorder.failed(cancelled, "cancelled", "unknown")
    recorder.settled(cancelled, 7)
    recorder.called("s", "get", {"key": "k"})
    recorder.close()
    with (tmp_path / "w.jsonl").open("a") as file:
        file.write('["called",4,1')  # cut off
    found = read_operations(tmp_path / "w.jsonl")
    assert [(op.happened, op.version, op.returned_ns is None) for op in found] == [
        ("yes", 0, False), ("unknown", 7, False), ("unknown", 0, True),
    ]  # fmt: skip


@pytest.mark.parametrize("sound", [True, False])
def test_many_kills_leave_nothing_undecided(sound: bool) -> None:
    """Of forty writes without an end a dozen happened, in an order that only the last read tells."""
    lost = [append(10 + number, None, f"v{number}") for number in range(40)]
    shown = [(seq, f"v{number}") for seq, number in enumerate(range(39, 3, -3), 1)]
    wanted = len(shown) + (1 if sound else 2)
    it = history(*lost, events(70, 80, *shown), op(90, 95, "info", [wanted, 1, len(shown)]))
    assert (certificate.check(it) == []) is sound


def test_a_gap_filled_wrongly_at_first_is_soon_filled_anew() -> None:
    """Whoever was seen is tried first, here too early; what else was lost could come at the end in any order."""
    lost = [op(10 + number, None, "increment", key=f"n{number}") for number in range(12)]
    told = [put(40, 50, "mid", 3), put(60, 70, "z", 5, key="l")]
    shown = op(80, 90, "state", {"k": "late", "l": "z", "n0": 1})
    assert certificate.check(history(*lost, put(30, None, "late"), *told, shown)) == []


CAPPED = dataclasses.replace(FIRST, arguments={"max_events": 2})
NEWEST = [A, B, C, op(70, 80, "info", [4, 2, 3])]


def test_only_the_newest_are_shown() -> None:
    it = History("s", [CAPPED, *NEWEST, events(90, 95, (2, "b"), (3, "c"))])
    assert is_linearizable(it)
    assert certificate.check(it) == []
    assert visibility.check(it) == []


@pytest.mark.parametrize("shown", [[(1, "a"), (2, "b"), (3, "c")], [(3, "c")]])
def test_one_more_or_less_than_the_newest_is_caught(shown: list[tuple[int, str]]) -> None:
    it = History("s", [CAPPED, *NEWEST, events(90, 95, *shown)])
    assert not is_linearizable(it)
    assert len(certificate.check(it)) > 0


def test_a_log_that_does_not_begin_at_the_newest_is_caught() -> None:
    assert len(visibility.check(History("s", [CAPPED, *NEWEST[:3], op(70, 80, "info", [4, 1, 3])]))) > 0


# The two checkers agree on random histories


def random_history(rng: random.Random) -> list[Operation]:
    """Operations of a sound session, each taking place at one moment of its call; some ends are lost."""
    state = State(1, {}, Log())
    moments = sorted(rng.sample(range(100, 900), rng.randrange(3, 9)))
    operations = list[Operation]()
    for number, moment in enumerate(moments):
        called = moment - rng.randrange(1, 250)
        returned = None if rng.random() < 0.2 else moment + rng.randrange(1, 250)
        operation = random_operation(rng, state, called, returned, f"v{number}")
        may_happen = operation.is_write and operation.error is None
        if may_happen and (returned is not None or rng.random() < 0.6):  # else it never happened
            state = apply(state, dataclasses.replace(operation, happened="unknown", version=0))
        operations.append(operation)
    if state.status == "deleted":
        return [*operations, late(2000, 2001, "SessionNotFound"), late(2002, 2003, "SessionNotFound", "get")]
    operations.append(op(2000, 2001, "info", [state.version, 1, len(state.log)]))
    operations.append(op(2002, 2003, "state", {key: value for key, (value, _) in state.values.items()}))
    return operations


def random_operation(rng: random.Random, state: State, called: int, returned: int | None, data: str) -> Operation:
    """One, with the answer that it gets in this state."""
    version = state.version + 1 if returned is not None else 0
    log = [(seq, data) for seq, (_, data) in enumerate(state.log.between(0, len(state.log)), 1)]
    key = rng.choice("kl")
    value, key_version = state.values.get(key, (None, 0))
    if state.status != "active":
        return late(called, returned or 1999, "SessionClosed" if state.status == "closed" else "SessionNotFound")
    match rng.randrange(9):
        case 8:
            return op(called, returned, rng.choice(["close", "delete"]), returned and True, version)
        case 0:
            return append(called, returned, data, len(log) + 1, version)
        case 1:
            return put(called, returned, data, version, key)
        case 2:
            return op(called, returned, "remove", value, version, key=key)
        case 3:
            number = state.values.get("n", (0, 0))[0] + 1
            return op(called, returned, "increment", number, version, key="n")
        case 4:
            answer = version or None
            return op(called, returned, "compare_and_set", answer, version, key=key, expected=key_version, value=data)
        case 5:
            return op(called, returned, "get_versioned", [value, key_version], key=key)
        case 6:
            return op(called, returned, "state", {key: value for key, (value, _) in state.values.items()})
        case _:
            return dataclasses.replace(
                events(called, 0, *log), returned_ns=returned, happened="yes" if returned else "unknown"
            )


def spoiled(rng: random.Random, operations: list[Operation]) -> list[Operation]:
    """The same with one thing changed, which may or may not be noticeable."""
    index = rng.randrange(len(operations) - 2)
    victim = operations[index]
    others = operations[:index] + operations[index + 1 :]
    match rng.randrange(5):
        case 0:
            return others
        case 1 if victim.version:
            return [*others, dataclasses.replace(victim, version=max(2, victim.version + rng.choice([-1, 1])))]
        case 2 if victim.returned_ns is not None:
            shift = rng.randrange(-400, 400)
            return [
                *others,
                dataclasses.replace(victim, called_ns=victim.called_ns + shift, returned_ns=victim.returned_ns + shift),
            ]
        case 3:
            twin = rng.choice(operations)
            return (
                [*others, dataclasses.replace(victim, result=twin.result)] if twin.kind == victim.kind else operations
            )
        case _:
            return [
                *others, dataclasses.replace(victim, returned_ns=None, version=0, happened="unknown", error=None)
            ]  # fmt: skip


def test_both_checkers_agree() -> None:
    """On sound histories and on spoiled ones; enough of both verdicts to mean something."""
    verdicts = {True: 0, False: 0}
    for seed in range(2_000):
        rng = random.Random(seed)
        operations = random_history(rng)
        if seed % 3:
            operations = spoiled(rng, operations)
        it = History("s", [FIRST, *operations])
        expected = is_linearizable(it)
        found = certificate.check(it)
        assert (found == []) is expected, f"seed {seed}: {found}\n" + "\n".join(map(str, operations))
        assert expected or seed % 3
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200


def test_a_log_branches() -> None:
    """Two futures of one state do not see each other."""
    log = Log().plus([("", "a")])
    left, right = log.plus([("", "b")]), log.plus([("", "c")])
    assert left.between(0, 9) == [("", "a"), ("", "b")]
    assert right.between(0, 9) == [("", "a"), ("", "c")]
    assert log.between(0, 9) == [("", "a")]


def test_an_unknown_compare_and_set_fits_where_its_version_was() -> None:
    with pytest.raises(Impossible, match="not the expected 7"):
        apply(State(1, {}, Log()), op(10, None, "compare_and_set", key="k", expected=7, value="x"))
