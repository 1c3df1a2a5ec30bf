"""Several instances at once, each in a process of its own, that wait for each other at agreed points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from multiprocessing import get_context
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Final, TypeVar

import anyio.to_thread

from bench.runner import quietly

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

__all__ = ["meet", "together"]

T = TypeVar("T")

_PATIENCE_S: Final = 120.0
"""How long the first at a meeting waits for the last."""

_barrier: Barrier | None = None


def together(members: Sequence[Callable[[], T]]) -> list[T]:
    """Call each function, which must be picklable, in a fresh process, all at once; what they return, in order.

    They may `meet`, each of them as often as the others. What one of them raises is raised here.
    """
    context = get_context("spawn")
    initargs = (context.Barrier(len(members)),)
    with ProcessPoolExecutor(len(members), context, initializer=_join, initargs=initargs) as pool:
        futures = [pool.submit(_take_part, member) for member in members]
        wait(futures, return_when=FIRST_EXCEPTION)
        errors = [future.exception() for future in futures]
        # Who fails sends the others home: these have nothing to say.
        for error in sorted(filter(None, errors), key=lambda error: isinstance(error, BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]


async def meet() -> None:
    """Wait until all of the processes are here. Raises: `BrokenBarrierError` if one cannot come."""
    assert _barrier is not None
    await anyio.to_thread.run_sync(_barrier.wait, _PATIENCE_S)


def _join(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _take_part(member: Callable[[], T]) -> T:
    assert _barrier is not None
    try:
        return quietly(member)
    except BaseException:
        _barrier.abort()
        raise
