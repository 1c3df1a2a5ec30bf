"""The seam to the event loop: one waiter, resolved by another task of the same loop.

An acknowledgement per write is the hottest thing the engine does, and each loop has a cheaper one
than a general event: asyncio a bare future, trio a parked task. Everything else uses anyio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol, cast

import sniffio

if TYPE_CHECKING:
    import trio

__all__ = ["Ack", "Signal", "ack_factory"]


class Ack(Protocol):
    """Awaited by one task, resolved once by another. An asyncio future is one."""

    def done(self) -> bool:
        """Whether it is resolved, or its awaiting task was cancelled."""
        ...

    def set_result(self, result: None, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...

    def __await__(self) -> Generator[Any, None, None]: ...


def ack_factory() -> Callable[[], Ack]:
    """The cheapest maker of acks for the event loop that is running."""
    if sniffio.current_async_library() == "trio":
        return _TrioAck
    return cast("Callable[[], Ack]", asyncio.get_running_loop().create_future)


class _TrioAck:
    """A trio task parked until resolved."""

    __slots__ = ("_done", "_exception", "_task")

    def __init__(self) -> None:
        self._done = False
        self._exception: BaseException | None = None
        self._task: trio.lowlevel.Task | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None, /) -> None:
        self._resolve(None)

    def set_exception(self, exception: BaseException, /) -> None:
        self._resolve(exception)

    def _resolve(self, exception: BaseException | None) -> None:
        from trio import lowlevel

        self._done = True
        self._exception = exception
        if self._task is not None:
            lowlevel.reschedule(self._task)
            self._task = None

    def __await__(self) -> Generator[Any, None, None]:
        from trio import lowlevel

        if not self._done:
            self._task = lowlevel.current_task()
            yield from lowlevel.wait_task_rescheduled(self._abort).__await__()
        if self._exception is not None:
            raise self._exception

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        from trio import lowlevel

        self._done = True
        self._task = None
        return lowlevel.Abort.SUCCEEDED


class Signal:
    """Wakes one task, any number of times; a `set` while nobody waits is kept for the next wait."""

    def __init__(self, new_ack: Callable[[], Ack]) -> None:
        self._new_ack = new_ack
        self._ack: Ack | None = None
        self._set = False

    def set(self) -> None:
        self._set = True
        if self._ack is not None and not self._ack.done():
            self._ack.set_result(None)

    async def wait(self) -> None:
        """Return once `set` has been called since the last wait. For one task at a time."""
        while not self._set:
            self._ack = self._new_ack()
            try:
                await self._ack
            finally:
                self._ack = None
        self._set = False
