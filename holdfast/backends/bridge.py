"""The one bridge between trio and drivers that know asyncio alone.

Under asyncio a call goes straight through. Under trio the backend owns a thread with an asyncio
loop in it, and a call runs there as a task of its own while the trio task waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

import sniffio

from holdfast.errors import StoreClosed

__all__ = ["Bridge", "HeadStart"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


_HEAD_START_S: Final = 0.002


class HeadStart:
    """For work in another thread that is worth starting before the event loop goes on with its own.

    The loop's thread stands still until the work is about to leave the interpreter for long, but not
    for more than 2 ms. Else it would begin only when the loop has nothing left to do.
    """

    def __init__(self) -> None:
        self._running: Final = threading.Lock()
        self._running.acquire()

    def begun(self) -> None:
        """The work says so, once."""
        self._running.release()

    def wait(self) -> None:
        if self._running.acquire(timeout=_HEAD_START_S):
            self._running.release()  # there may be a thread on either side of the bridge


class Bridge:
    """Runs a driver's coroutine functions, whatever event loop the caller is on.

    Belongs to one backend: started before its driver's first call, stopped after the last, on the
    event loop that makes the calls in between.
    """

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Start the driver's loop, if the caller's is not one that drivers know."""
        if sniffio.current_async_library() == "asyncio" or self._thread is not None:
            return
        loop = self._loop = asyncio.new_event_loop()
        # A daemon, so that a program that dies without closing its store can end.
        self._thread = threading.Thread(target=_run, args=(loop,), name=f"{self._name}-bridge", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Cancel what still runs, and end the thread. May be called twice, and under cancellation."""
        loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        if loop is None or thread is None:
            return
        import trio

        loop.call_soon_threadsafe(loop.stop)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)

    async def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts, head_start: HeadStart | None = None) -> T:
        """``await function(*args)`` on the driver's loop. It waits for ``head_start`` itself, too.

        Raises what the function raises, and `StoreClosed` if the bridge is stopped meanwhile.
        A cancellation reaches the function, and the caller leaves only when the function has
        ended: nothing goes on behind its back.
        """
        if self._thread is None:
            return await function(*args)
        if self._loop is None:
            raise StoreClosed("the store is closing")
        return await _Call(function, args).run(self._loop, head_start)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_remaining())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _cancel_remaining() -> None:
    remaining = asyncio.all_tasks() - {asyncio.current_task()}
    for task in remaining:
        task.cancel()
    await asyncio.gather(*remaining, return_exceptions=True)


def _drivers_context() -> contextvars.Context:
    """The caller's, but for what says there that this is trio."""
    context = contextvars.copy_context()
    context.run(sniffio.current_async_library_cvar.set, None)
    return context


class _Call(Generic[T]):
    """One call on its way: made in trio's thread, run in the loop's, ended in trio's."""

    def __init__(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        import trio

        self._function: Final = function
        self._args: Final = args
        self._ended: Final = trio.Event()
        self._token: Final = trio.lowlevel.current_trio_token()
        self._task: asyncio.Task[T] | None = None

    async def run(self, loop: asyncio.AbstractEventLoop, head_start: HeadStart | None) -> T:
        import trio

        try:
            loop.call_soon_threadsafe(self._start, context=_drivers_context())
        except RuntimeError as exc:
            raise StoreClosed("the store is closed") from exc
        if head_start is not None:
            head_start.wait()
        try:
            await self._ended.wait()
        except trio.Cancelled:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the call has ended
                loop.call_soon_threadsafe(self._cancel)
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            raise
        return self._result()

    def _start(self) -> None:
        self._task = asyncio.ensure_future(self._await())
        self._task.add_done_callback(self._report)

    async def _await(self) -> T:
        return await self._function(*self._args)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _report(self, task: asyncio.Task[T]) -> None:
        import trio

        if not task.cancelled():
            task.exception()  # asked for, so that asyncio does not log it where the caller has left
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ended.set)

    def _result(self) -> T:
        task = self._task
        if task is None or task.cancelled():
            raise StoreClosed("the store closed during the call")
        return task.result()
