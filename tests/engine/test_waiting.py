"""The seam to the event loop: acks and signals, on every loop."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from holdfast.testing import ManualClock
from holdfast.waiting import Ack, Signal, ack_factory

pytestmark = pytest.mark.anyio

PATIENCE_S = 10


async def await_into(ack: Ack, results: list[Any], name: Any) -> None:
    try:
        await ack
    except LookupError as exc:
        results.append((name, exc))
    else:
        results.append(name)


async def test_ack_resolved_before_it_is_awaited() -> None:
    ack = ack_factory()()
    assert not ack.done()
    ack.set_result(None)
    assert ack.done()
    with anyio.fail_after(PATIENCE_S):
        await ack


async def test_ack_resolved_while_it_is_awaited(clock: ManualClock) -> None:
    new_ack = ack_factory()
    acks = [new_ack() for _ in range(3)]
    results = list[Any]()
    async with anyio.create_task_group() as tasks:
        for number, ack in enumerate(acks):
            tasks.start_soon(await_into, ack, results, number)
        await clock.settle()
        assert results == []
        for number in (1, 0, 2):
            assert not acks[number].done()
            acks[number].set_result(None)
            assert acks[number].done()
            await clock.settle()
    assert results == [1, 0, 2]


@pytest.mark.parametrize("awaited_first", [True, False])
async def test_ack_with_an_exception(clock: ManualClock, awaited_first: bool) -> None:
    ack, error, results = ack_factory()(), LookupError("x"), list[Any]()
    async with anyio.create_task_group() as tasks:
        if not awaited_first:
            ack.set_exception(error)
        tasks.start_soon(await_into, ack, results, "a")
        await clock.settle()
        if awaited_first:
            assert results == []
            ack.set_exception(error)
    assert results == [("a", error)]


async def test_ack_of_a_cancelled_task_is_done(clock: ManualClock) -> None:
    """So nobody resolves it; and the task, which goes on, is not woken by it."""
    ack, later, results = ack_factory()(), ack_factory()(), list[Any]()

    async def wait() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await await_into(ack, results, "ack")
        results.append("cancelled")
        await await_into(later, results, "later")

    scopes = list[anyio.CancelScope]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await clock.settle()
        assert not ack.done()
        scopes[0].cancel()
        await clock.settle()
        assert ack.done()
        assert results == ["cancelled"]
        later.set_result(None)
    assert results == ["cancelled", "later"]


async def test_ack_resolved_in_the_moment_of_the_cancellation(clock: ManualClock) -> None:
    """Either way its task ends, and only once."""
    ack, results = ack_factory()(), list[Any]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(await_into, ack, results, "ack")
        await clock.settle()
        ack.set_result(None)
        tasks.cancel_scope.cancel()
    assert ack.done()
    assert results in ([], ["ack"])
    await checkpoint()


@pytest.fixture
async def signal() -> Signal:
    return Signal(ack_factory())


async def loop(signal: Signal, woken: list[int]) -> None:
    while True:
        await signal.wait()
        woken.append(len(woken))


async def test_signal_set_before_the_wait_is_kept(signal: Signal, clock: ManualClock) -> None:
    """And several are one."""
    signal.set()
    signal.set()
    woken = list[int]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop, signal, woken)
        await clock.settle()
        assert len(woken) == 1
        tasks.cancel_scope.cancel()


async def test_signal_wakes_any_number_of_times(signal: Signal, clock: ManualClock) -> None:
    woken = list[int]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop, signal, woken)
        await clock.settle()
        assert woken == []
        for times in range(1, 4):
            signal.set()
            signal.set()
            await clock.settle()
            assert len(woken) == times
        tasks.cancel_scope.cancel()


async def test_signal_outlives_a_cancelled_wait(signal: Signal, clock: ManualClock) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(signal.wait)
        await clock.settle()
        tasks.cancel_scope.cancel()
    signal.set()
    with anyio.fail_after(PATIENCE_S):
        await signal.wait()
    woken = list[int]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop, signal, woken)
        await clock.settle()
        assert woken == []
        tasks.cancel_scope.cancel()
