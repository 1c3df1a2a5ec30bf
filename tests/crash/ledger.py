"""The ledger of acknowledged writes, kept outside the process that is killed, and the checks against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.model import Event
from holdfast.supervisor.session import Session
from tests.crash.opening import open_store

SESSIONS = [f"s{number:02}" for number in range(12)]
CROWD = [f"plain{number:03}" for number in range(200)]
"""Only appended to. So many that one flush waits behind another where commits queue."""

Write = list[Any]
"""``[writer, number]``: unique, and the numbers of a writer grow."""


async def create_sessions(url: str, names: Sequence[str] = SESSIONS) -> None:
    async with open_store(url) as store:
        for name in names:
            await store.create(name)


@dataclasses.dataclass
class Ledger:
    """What the worker was told (``acked``), and what its subscribers were shown (``seen``).

    A line is ``["acked" or "seen", session, event id, write]``, or ``["set", session, "", write]``.
    """

    names: Sequence[str] = tuple(SESSIONS)
    acked: dict[str, dict[str, Write]] = dataclasses.field(default_factory=dict[str, dict[str, Write]])
    seen: dict[str, dict[str, Write]] = dataclasses.field(default_factory=dict[str, dict[str, Write]])
    sets: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict[str, dict[str, int]])
    found: dict[str, Write] = dataclasses.field(default_factory=dict[str, Write])
    """Ids that an earlier check found in the store: they must stay what they are."""
    sessions_of: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    faults: list[str] = dataclasses.field(default_factory=list[str])

    def record(self, line: list[Any]) -> None:
        kind, session, event_id, write = line
        if kind == "set":
            writer, number = write
            self.sets.setdefault(session, {})[writer] = number
            return
        entries = (self.acked if kind == "acked" else self.seen).setdefault(session, {})
        known = entries.setdefault(event_id, write)
        if known != write:
            self.faults.append(f"{session}: id {event_id} was given to {known} and to {write}")

    @property
    def acknowledged(self) -> int:
        return sum(map(len, self.acked.values()))

    async def check(self, url: str) -> list[str]:
        """Compare with the store, opened anew. What is wrong, in words; nothing if all is well."""
        faults = list(self.faults)
        async with open_store(url) as store:
            for name in self.names:
                session = await store.require(name)
                events, state = await _read(session)
                faults += self._check_log(name, events)
                if name not in CROWD:
                    faults += _check_state(name, events, state, self.sets.get(name, {}))
                faults += await _check_resume(session, events, self.acked.get(name, {}))
        return faults

    def _check_log(self, name: str, events: list[Event]) -> list[str]:
        stored = {event.id: event.data for event in events}
        faults = [
            f"{name}: {kind} {event_id} {write} is stored as {stored.get(event_id, 'nothing')}"
            for kind, entries in (("acknowledged", self.acked), ("shown", self.seen))
            for event_id, write in entries.get(name, {}).items()
            if stored.get(event_id) != write
        ]
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            faults.append(f"{name}: the log has gaps")
        last: dict[str, int] = {}
        for event in events:
            writer, number = event.data
            if number <= last.get(writer, -1):
                faults.append(f"{name}: {event.data} comes after {last[writer]}: doubled or out of order")
            last[writer] = number
            self.sessions_of[event.id] = name
            if self.found.setdefault(event.id, event.data) != event.data:
                faults.append(f"{name}: id {event.id} was {self.found[event.id]}, is {event.data}")
        gone = self.found.keys() - stored.keys()
        faults += [
            f"{name}: {event_id} was there, and is gone" for event_id in gone if self.sessions_of[event_id] == name
        ]
        return faults


async def _read(session: Session) -> tuple[list[Event], dict[str, Any]]:
    """The log and the state of one version: a server may still carry out what a killed process had sent."""
    while True:
        version = (await session.info()).version
        events = [event async for event in session.replay()]
        state = await session.state()
        if (await session.info()).version == version:
            return events, state


def _check_state(name: str, events: list[Event], state: dict[str, Any], acked: dict[str, int]) -> list[str]:
    """Every event came in one unit with the key "last"; plain sets count upwards for each writer."""
    last = events[-1].data if events else None
    faults = list[str]()
    if state.get("last") != last:
        faults.append(f"{name}: the last event is {last}, the state of its unit {state.get('last')}")
    for writer, number in acked.items():
        stored = state.get(f"set by {writer}", -1)
        if stored < number:
            faults.append(f"{name}: {writer} set {number}, stored is {stored}")
    return faults


async def _check_resume(session: Session, events: list[Event], acked: dict[str, Write]) -> list[str]:
    """A client that had got so far resumes exactly there."""
    for event_id in list(acked)[:: max(1, len(acked) // 3)]:
        seq = int(event_id.split(".")[1])
        try:
            rest = await session.events(after=event_id)
        except HoldfastError as exc:
            return [f"{session.id}: nobody can resume: {exc}"]
        if rest != events[seq:]:
            return [f"{session.id}: replay after {event_id} is not the rest of the log"]
    return []
