"""The bridge to asyncio-only drivers: straight through on asyncio, a loop in a thread on trio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import anyio
import pytest
import sniffio

from holdfast.backends.bridge import Bridge
from holdfast.errors import StoreClosed
from holdfast.testing.leaks import live_threads

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    bridge = Bridge("test")
    await bridge.start()
    yield bridge
    await bridge.stop()


def on_trio() -> bool:
    return sniffio.current_async_library() == "trio"


async def where() -> tuple[threading.Thread, bool]:
    await asyncio.sleep(0)
    return threading.current_thread(), asyncio.get_running_loop().is_running()


async def test_runs_on_an_asyncio_loop(bridge: Bridge) -> None:
    thread, running = await bridge.call(where)
    assert running
    assert (thread is threading.current_thread()) is not on_trio()


async def test_drivers_see_asyncio(bridge: Bridge) -> None:
    """Also those that ask which loop runs, as anyio does."""

    async def ask() -> str:
        await anyio.sleep(0)
        return sniffio.current_async_library()

    assert await bridge.call(ask) == "asyncio"


async def test_arguments_and_results(bridge: Bridge) -> None:
    async def join(*parts: str) -> str:
        await asyncio.sleep(0)
        return "".join(parts)

    assert await bridge.call(join, "a", "b", "c") == "abc"


async def test_exceptions_come_through(bridge: Bridge) -> None:
    error = LookupError("gone")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(LookupError) as caught:
        await bridge.call(fail)
    assert caught.value is error


async def test_calls_overlap(bridge: Bridge) -> None:
    """Each waits for the other: one after the other would never end."""
    meeting: asyncio.Barrier | None = None

    async def meet() -> int:
        nonlocal meeting
        meeting = meeting or asyncio.Barrier(2)
        return await meeting.wait()

    arrived = list[int]()

    async def call() -> None:
        arrived.append(await bridge.call(meet))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            tasks.start_soon(call)
    assert sorted(arrived) == [0, 1]


async def test_cancellation_reaches_the_driver_and_waits_for_it(bridge: Bridge) -> None:
    started, steps = threading.Event(), list[str]()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            steps.append("cancelled")
            await asyncio.sleep(0.01)
            steps.append("cleaned up")
            raise

    async def call() -> None:
        try:
            await bridge.call(work)
        finally:
            steps.append("caller left")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            while not started.is_set():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    # A straight call is cancelled as anyio cancels: at each await anew, until the function has ended.
    cleaned_up = ["cleaned up"] if on_trio() else []
    assert steps == ["cancelled", *cleaned_up, "caller left"]


async def test_cancelled_caller_of_a_failing_driver(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    """What the driver raises while it is being cancelled is nobody's, and not logged as forgotten."""
    started = threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if on_another_thread:
                raise LookupError("too late") from None
            raise

    on_another_thread = on_trio()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.call, work)
            while not started.is_set():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    await bridge.stop()
    assert caplog.records == []


async def test_stop_ends_the_thread_and_what_runs_there() -> None:
    before = live_threads()
    bridge = Bridge("test")
    await bridge.start()
    assert (len(live_threads() - before) == 1) is on_trio()
    started, ended = threading.Event(), list[BaseException]()

    async def work() -> None:
        started.set()
        await asyncio.sleep(3600)

    async def call() -> None:
        try:
            await bridge.call(work)
        except StoreClosed as exc:
            ended.append(exc)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            while not started.is_set():
                await anyio.sleep(0.001)
            await bridge.stop()
            await bridge.stop()
            if not on_trio():
                tasks.cancel_scope.cancel()  # a straight call is the caller's own
    assert live_threads() == before
    assert len(ended) == (1 if on_trio() else 0)


async def test_starts_again() -> None:
    bridge = Bridge("test")
    for _ in range(2):
        await bridge.start()
        await bridge.start()
        _, running = await bridge.call(where)
        assert running
        await bridge.stop()


async def test_stop_under_cancellation() -> None:
    before = live_threads()
    bridge = Bridge("test")
    await bridge.start()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await bridge.stop()
    assert live_threads() == before
