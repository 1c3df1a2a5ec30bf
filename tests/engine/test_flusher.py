"""One flush that goes wrong: what its callers hear, and what the next ones find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from holdfast.backends.base import Marker, Outcome
from holdfast.backends.memory import MemoryBackend
from holdfast.config import Config, WriterConfig
from holdfast.errors import HoldfastError, OutcomeUnknown
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
RETRY_FOR_S = 20.0


def open_store(backend: FaultyBackend, clock: ManualClock, **writer: Any) -> Supervisor:
    return Supervisor(backend, Config(ttl_s=None, writer=WriterConfig(retry_for_s=RETRY_FOR_S, **writer)), clock=clock)


async def append(session: Session, told: list[Exception | int]) -> None:
    try:
        told.append((await session.append("x")).seq)
    except HoldfastError as exc:
        told.append(exc)


class Miscounting(FaultyBackend):
    """`resolve` answers for another batch."""

    def __init__(self, change: Callable[[list[Outcome]], list[Outcome]]) -> None:
        super().__init__(MemoryBackend())
        self.change = change

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        outcomes = await super().resolve(marker)
        return outcomes if outcomes is None else self.change(outcomes)


def none_of(_outcomes: list[Outcome]) -> list[Outcome]:
    return []


def twice(outcomes: list[Outcome]) -> list[Outcome]:
    return outcomes * 2


@pytest.mark.parametrize("change", [none_of, twice])
async def test_outcomes_found_out_for_another_batch_are_none(
    clock: ManualClock, change: Callable[[list[Outcome]], list[Outcome]]
) -> None:
    """The lane lives on, and the callers hear that nobody knows."""
    backend = Miscounting(change)
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.UNKNOWN_DONE)
        told = list[Exception | int]()
        async with clock.flowing():
            await append(session, told)
        assert [type(each) for each in told] == [OutcomeUnknown]
        assert store.statistics().lanes[0].resolved == 0
        await clock.advance(RETRY_FOR_S)
        with anyio.fail_after(PATIENCE_S):
            assert (await session.append("y")).seq == 2


async def test_a_commit_found_to_be_done_ends_the_run_of_failures(clock: ManualClock) -> None:
    """Else a passing error much later would look like the end of a long outage, and not be tried again."""
    backend = FaultyBackend(MemoryBackend())
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.UNKNOWN_DONE)
        told = list[Exception | int]()
        await append(session, told)
        await clock.advance(RETRY_FOR_S + 1)
        backend.inject(FaultKind.UNAVAILABLE)
        async with clock.flowing():
            await append(session, told)
        assert told == [1, 2]
