"""Histories: what each process asked of a session and what it was told, with times that all processes share.

A worker writes two lines for each operation to a file of its own: one before it begins and one when it
has ended. ``kill -9`` leaves the second out: whether the operation happened is then unknown. Times are
nanoseconds of ``CLOCK_MONOTONIC``, which is one clock for the whole machine. They enclose the operation,
so an order read from them is a real one.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

__all__ = ["ENDS", "FIRST_STATE", "WRITES", "History", "Operation", "Recorder", "Seen", "read_operations", "seq_of"]

ENDS: Final = frozenset({"close", "delete"})

WRITES: Final = frozenset({"write", "increment", "compare_and_set", "remove", "clear"}) | ENDS
"""Operations that take a version. "write" is a unit: sets, removes and events."""

FIRST_STATE: Final = "first"
"""The kind of the read that says where a history begins: ``[version, first_seq, last_seq]`` of a session
without keys and events. Its argument ``max_events`` is the retention that all processes keep to."""


class _Called(msgspec.Struct, frozen=True, array_like=True, tag="called"):
    number: int
    at_ns: int
    session: str
    kind: str
    arguments: dict[str, Any]


class _Returned(msgspec.Struct, frozen=True, array_like=True, tag="returned"):
    number: int
    at_ns: int
    result: Any
    version: int


class _Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    number: int
    at_ns: int
    error: str
    happened: Literal["no", "unknown"]
    detail: Any


class _Settled(msgspec.Struct, frozen=True, array_like=True, tag="settled"):
    """Of an operation whose caller gave up: it has happened, and made this version."""

    number: int
    version: int


class _Began(msgspec.Struct, frozen=True, array_like=True, tag="began"):
    """Of a subscription: it is attached; from now on it misses nothing."""

    number: int
    at_ns: int


class _Saw(msgspec.Struct, frozen=True, array_like=True, tag="saw"):
    number: int
    called_ns: int
    at_ns: int
    event: list[Any]


_Line = _Called | _Returned | _Failed | _Settled | _Began | _Saw


class Seen(msgspec.Struct, frozen=True):
    """An event that a subscription gave out, and when it was asked for one."""

    called_ns: int
    returned_ns: int
    event: list[Any]
    """``[id, data]``, as everywhere in results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One call of one process."""

    process: str
    number: int
    session: str
    kind: str
    arguments: dict[str, Any]
    called_ns: int
    returned_ns: int | None = None
    """None: it never returned."""
    result: Any = None
    error: str | None = None
    happened: Literal["yes", "no", "unknown"] = "unknown"
    version: int = 0
    """Of a write: the session's version that it made; 0: not known."""
    began_ns: int | None = None
    """Of a subscription: when it was attached."""
    seen: list[Seen] = dataclasses.field(default_factory=list[Seen])

    def __str__(self) -> str:
        told = "never returned" if self.returned_ns is None else f"{self.error or ''} {self.result!r:.200}".strip()
        place = f" as version {self.version}" if self.version else ""
        return f"{self.process}#{self.number} {self.kind} {self.arguments!r:.200} -> {told}{place}"

    @property
    def is_write(self) -> bool:
        return self.kind in WRITES


@dataclasses.dataclass(frozen=True)
class History:
    """All operations on one session by anybody."""

    session: str
    operations: list[Operation]

    @property
    def first(self) -> Operation:
        """The read that it begins with."""
        return next(op for op in self.operations if op.kind == FIRST_STATE)

    @classmethod
    def by_session(cls, operations: Iterable[Operation]) -> list[History]:
        found: dict[str, list[Operation]] = {}
        for operation in operations:
            found.setdefault(operation.session, []).append(operation)
        return [cls(session, found[session]) for session in sorted(found)]


def seq_of(event_id: str) -> int:
    return int(event_id.split(".")[1])


class Recorder:
    """A process's own file. Each line is one system call, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._numbers = 0

    def called(self, session: str, kind: str, arguments: dict[str, Any]) -> int:
        """Before the operation; its number."""
        self._numbers += 1
        self._tell(_Called(self._numbers, time.monotonic_ns(), session, kind, arguments))
        return self._numbers

    def returned(self, number: int, result: Any, version: int = 0) -> None:
        self._tell(_Returned(number, time.monotonic_ns(), result, version))

    def failed(self, number: int, error: str, happened: Literal["no", "unknown"], detail: Any = None) -> None:
        self._tell(_Failed(number, time.monotonic_ns(), error, happened, detail))

    def settled(self, number: int, version: int) -> None:
        self._tell(_Settled(number, version))

    def began(self, number: int) -> None:
        self._tell(_Began(number, time.monotonic_ns()))

    def saw(self, number: int, called_ns: int, event: list[Any]) -> None:
        self._tell(_Saw(number, called_ns, time.monotonic_ns(), event))

    def close(self) -> None:
        os.close(self._file)

    def _tell(self, line: _Line) -> None:
        os.write(self._file, msgspec.json.encode(line) + b"\n")


def read_operations(path: Path) -> list[Operation]:
    """What the process called like the file did. A line that a kill cut off was never told to anybody."""
    found: dict[int, Operation] = {}
    for line in _lines(path):
        if isinstance(line, _Called):
            found[line.number] = Operation(
                process=path.stem,
                number=line.number,
                session=line.session,
                kind=line.kind,
                arguments=line.arguments,
                called_ns=line.at_ns,
            )
        else:
            found[line.number] = _told(found[line.number], line)
    return list(found.values())


def _lines(path: Path) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decoder.decode(line)


def _told(operation: Operation, line: _Returned | _Failed | _Settled | _Began | _Saw) -> Operation:
    match line:
        case _Returned(at_ns=at_ns, result=result, version=version):
            return dataclasses.replace(operation, returned_ns=at_ns, result=result, version=version, happened="yes")
        case _Failed(at_ns=at_ns, error=error, happened=happened, detail=detail):
            return dataclasses.replace(operation, returned_ns=at_ns, error=error, happened=happened, result=detail)
        case _Settled(version=version):
            return dataclasses.replace(operation, version=version)
        case _Began(at_ns=at_ns):
            return dataclasses.replace(operation, began_ns=at_ns)
        case _Saw(called_ns=called_ns, at_ns=at_ns, event=event):
            operation.seen.append(Seen(called_ns, at_ns, event))
            return operation
