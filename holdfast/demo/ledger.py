"""The ledger of acknowledged events, and its comparison with what the client received."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from holdfast.model import Cursor

__all__ = ["Comparison", "Entry", "Received", "compare", "entry", "ledger_path", "read_ledger", "read_ledgers"]


class Entry(msgspec.Struct, frozen=True):
    """An event whose storing was acknowledged."""

    id: str
    data: Any


class Received(msgspec.Struct, frozen=True):
    """An event as it came over the wire. ``replayed``: on a connection that resumed after a cursor."""

    id: str
    data: Any
    replayed: bool
    instance: int = 1
    """The number of the instance that it came through."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of what is wrong; all empty if nothing is."""

    missing: list[str]
    duplicated: list[str]
    changed: list[str]
    disordered: list[str]

    @property
    def clean(self) -> bool:
        return not (self.missing or self.duplicated or self.changed or self.disordered)


def entry(event_id: str, data: Any) -> bytes:
    """One line of the ledger."""
    return msgspec.json.encode(Entry(event_id, data)) + b"\n"


def read_ledger(path: Path) -> list[Entry]:
    """All whole lines. The last may be cut off: its writer was killed."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Entry) for line in lines]


def ledger_path(folder: Path, instance: int, pid: int) -> Path:
    """Where a process notes what it has acknowledged: in a file of its own, whose last line may be cut off."""
    return folder / f"{instance}.{pid}.ledger"


def read_ledgers(folder: Path) -> dict[int, list[Entry]]:
    """What each instance has acknowledged, in one process after another."""
    found: dict[int, list[Entry]] = {}
    for path in folder.glob("*.ledger"):
        found.setdefault(int(path.name.partition(".")[0]), []).extend(read_ledger(path))
    return found


def compare(acknowledged: Sequence[Entry], received: Sequence[Received]) -> Comparison:
    """Every acknowledged event must have come once, as it was stored, in the order of its stream."""
    counts = Counter(event.id for event in received)
    data = {event.id: event.data for event in received}
    return Comparison(
        missing=[note.id for note in acknowledged if note.id not in counts],
        duplicated=[event_id for event_id, count in counts.items() if count > 1],
        changed=[note.id for note in acknowledged if note.id in data and data[note.id] != note.data],
        disordered=_disordered(event.id for event in received),
    )


def _disordered(ids: Iterable[str]) -> list[str]:
    """Ids that came after a later one of their stream."""
    latest: dict[str, int] = {}
    late: list[str] = []
    for event_id in ids:
        cursor = Cursor.parse(event_id)
        if cursor.seq <= latest.get(cursor.stream, 0):
            late.append(event_id)
        latest[cursor.stream] = max(cursor.seq, latest.get(cursor.stream, 0))
    return late
