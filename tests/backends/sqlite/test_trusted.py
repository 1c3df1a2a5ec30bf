"""Flushes on trust: whatever the hints, they do what the reference does, and they need no temporary files."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from holdfast.backends.base import (
    Batch,
    EventQuery,
    Head,
    LoadRequest,
    Marker,
    NewEvent,
    Outcome,
    SessionWrite,
    Snapshot,
    Status,
)
from holdfast.backends.memory import MemoryBackend
from holdfast.backends.sqlite import SQLiteBackend
from holdfast.backends.sqlite.trusted import trusted_flush
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, new_event, texts

pytestmark = pytest.mark.anyio

SECOND: Final = 1_000_000
IDS: Final = [f"s{number}" for number in range(12)]
STEPS: Final = 150


class Chance:
    """Batches as engines could send them, in three moods.

    "tidy": plain writes of live sessions, with the right hints. "stale": the same, with hints and times
    of an instance that is behind. "wild": also what is not plain, and what is to be refused.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._incarnation = 0
        self._flush = 0
        self._mood = "tidy"
        self.now_us = 1_700_000_000_000_000

    def batch(self, heads: dict[str, Head]) -> Batch:
        chance = self._random
        self.now_us += chance.randrange(SECOND)
        self._flush += 1
        self._mood = chance.choice(["tidy", "stale", "wild"])
        ids = chance.sample(IDS, chance.randrange(1, 10))
        return Batch(
            writes=[self._write(id, heads.get(id)) for id in ids if self._wild() or self._open(heads.get(id))],
            marker=Marker("w", 0, self._flush),
            durability=chance.choice([Durability.DISK, Durability.PROCESS]),
            now_us=self.now_us,
            max_events=chance.choice([None, 10, 10]),
        )

    def _open(self, head: Head | None) -> bool:
        """Whether it can be written, or created."""
        return head is None or (head.status == "active" and (head.expires_us or self.now_us + 1) > self.now_us)

    def _wild(self, probability: float = 1) -> bool:
        return self._mood == "wild" and self._random.random() < probability

    def _behind(self) -> bool:
        return self._mood != "tidy" and self._random.random() < 0.15

    def _write(self, id: str, head: Head | None) -> SessionWrite:
        active_us = self.now_us - 2 * SECOND * self._behind()
        fields = {"id": id, "accepted_us": active_us - SECOND * self._behind(), "active_us": active_us}
        if self._random.random() < 0.85:  # else it only touches
            fields |= self._content()
            if self._wild(0.2):
                fields |= self._rarity()
        if head is None and self._wild(0.2):
            fields |= {"incarnation": 999_999, "version": 3, "base_seq": 3}
        elif head is None or self._wild(0.1):
            fields |= self._creation(id)
        else:
            fields |= self._hints(head)
        return SessionWrite(**fields)

    def _content(self) -> dict[str, Any]:
        chance = self._random
        units = chance.choice([1, 1, 2])
        sets = {
            f"k{chance.randrange(4)}": (b"%d" % chance.randrange(99), chance.randrange(1, units + 1))
            for _ in range(chance.choice([0, 0, 1, 3]))
        }
        removes = {f"k{chance.randrange(4)}" for _ in range(chance.choice([0, 0, 2]))} - sets.keys()
        events = [
            NewEvent(chance.choice(["", "st"]), "m", b'"%d"' % chance.randrange(99), chance.choice([None, 5]), 0)
            for _ in range(chance.choice([0, 1, 1, 2, 7]))
        ]
        fenced = chance.random() < 0.2
        return {"units": units, "sets": sets, "removes": sorted(removes), "events": events, "fenced": fenced}

    def _rarity(self) -> dict[str, Any]:
        chance = self._random
        rare: list[dict[str, Any]] = [
            {"cleared": True},
            {"floor_seq": chance.randrange(20)},
            {"metadata": b'{"a":%d}' % chance.randrange(9)},
            {"close": True},
            {"close": True},
            {"delete": True},
        ]
        return chance.choice(rare)

    def _creation(self, id: str) -> dict[str, Any]:
        chance = self._random
        self._incarnation += 1
        head = Head(
            id=id,
            incarnation=self._incarnation,
            owner=chance.choice([None, "o"]),
            created_us=self.now_us,
            active_us=self.now_us,
            ttl_us=chance.choice([None, 4 * SECOND]),
            deadline_us=chance.choice([None, None, self.now_us + 9 * SECOND]),
            status="active",
            metadata=b"{}",
            first_seq=1,
            last_seq=0,
            version=0,
        )
        fields = {"create": head, "incarnation": self._incarnation, "version": 0, "base_seq": 0}
        return fields | {"fenced": False, "floor_seq": 0}

    def _hints(self, head: Head) -> dict[str, Any]:
        late = head.version > 0 and self._behind()
        return {
            "incarnation": head.incarnation - self._wild(0.03),
            "version": head.version - late,
            "base_seq": max(0, head.last_seq - late * self._random.randrange(3)),
            "base_first_seq": 1 if self._behind() else head.first_seq,
        }


def is_trusted(batch: Batch, outcomes: list[Outcome]) -> bool:
    """Whether the flush is one that may be written on trust: plain, and all its hints are right."""
    flush = trusted_flush(batch)
    return flush is not None and flush.outcomes == outcomes


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_flush_does_what_the_reference_does(backend: SQLiteBackend, seed: int) -> None:
    """Same answers, same markers, same rows, after each of many random batches."""
    reference, chance = MemoryBackend(), Chance(seed)
    found: list[Snapshot | None] = []
    seen, trusted = set[Status](), 0
    for step in range(STEPS):
        batch = chance.batch({snapshot.head.id: snapshot.head for snapshot in found if snapshot is not None})
        if not batch.writes:
            continue
        expected = await reference.commit(msgspec.structs.replace(batch, durability=Durability.MEMORY))
        assert await backend.commit(batch) == expected, step
        assert await backend.resolve(batch.marker) == expected, step
        requests = [LoadRequest(id) for id in IDS]
        found = await reference.load(requests)
        assert await backend.load(requests) == found, step
        for write in batch.writes:
            query = EventQuery(write.id, write.incarnation)
            assert await backend.read_events(query) == await reference.read_events(query), step
        seen.update(outcome.status for outcome in expected)
        trusted += is_trusted(batch, expected)
    assert seen == set(Status)
    assert 0.25 < trusted / STEPS < 0.75


async def test_a_hint_that_is_wrong_of_the_log_alone_is_not_trusted(backend: SQLiteBackend, clock: ManualClock) -> None:
    """It should not come with the right version; if it does, the log still has no hole."""
    direct = Direct(backend, clock)
    head = await direct.append(await direct.create("s"), "one", "two")
    for base_seq in (1, 7):
        wrong = msgspec.structs.replace(await direct.head("s"), last_seq=base_seq)
        assert (await direct.one(blind(wrong, events=[new_event("more")]))).status is Status.COMMITTED
    assert [event.seq for event in await direct.events(head)] == [1, 2, 3, 4]
    assert texts(await direct.events(head)) == ["one", "two", "more", "more"]


_LARGE_FLUSHES: Final = """
import sys
import anyio
from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, new_event

async def main():
    backend = SQLiteBackend(SQLiteConfig(path=sys.argv[1]))
    await backend.open()
    direct = Direct(backend, ManualClock())
    heads = [await direct.create(f"s{number}") for number in range(40)]
    await direct.commit(*(blind(head, events=[new_event("x" * 100_000)]) for head in heads))
    await backend.close()

anyio.run(main)
"""


def test_a_large_flush_makes_no_temporary_file(path: Path, tmp_path: Path) -> None:
    """There may be no folder for it. In a process of its own, for SQLite asks once where that is."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    long_ago_ns = 10**18
    os.utime(folder, ns=(long_ago_ns, long_ago_ns))
    subprocess.run(
        [sys.executable, "-c", _LARGE_FLUSHES, str(path)],
        env=os.environ | {"SQLITE_TMPDIR": str(folder)},
        check=True,
        timeout=60,
    )
    assert folder.stat().st_mtime_ns == long_ago_ns  # a file made and removed would have changed it


async def test_temporary_tables_stay_in_memory(backend: SQLiteBackend) -> None:
    for run in (backend._write_connection_run, backend._read):
        assert await run(lambda connection: connection.execute("PRAGMA temp_store").fetchone()) == (2,)
