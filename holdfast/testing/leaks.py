"""What must not outlive a store: threads, tasks, open files."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import sniffio

__all__ = ["Leaks", "assert_no_leaks", "live_threads"]

_CACHED_THREADS = ("AnyIO worker thread", "Trio thread", "asyncio_", "uvloop_")
"""Name prefixes of worker threads that an event loop keeps for later, whoever needed them first."""


class Leaks(AssertionError):
    """Something is still there; the message says what."""


def live_threads() -> set[threading.Thread]:
    """Threads that somebody must have started and should have ended."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(_CACHED_THREADS)}


@asynccontextmanager
async def assert_no_leaks(*, patience_s: float = 2.0) -> AsyncGenerator[None, None]:
    """The block leaves no thread, task or open file behind that was not there before.

    Raises: `Leaks`, if something is still there ``patience_s`` (real time) after the block.
    """
    threads, files, tasks = live_threads(), _open_files(), _tasks()
    yield
    deadline = time.monotonic() + patience_s
    while True:
        leaks = [
            *(f"thread {thread.name!r}" for thread in live_threads() - threads),
            *(f"file {name}" for name in _open_files() - files),
            *_extra_tasks(tasks),
        ]
        if not leaks:
            return
        if time.monotonic() > deadline:
            raise Leaks("left behind: " + ", ".join(sorted(leaks)))
        await anyio.sleep(0.01)


def _open_files() -> set[str]:
    """Descriptors with what they point to; empty where the system cannot tell."""
    found = set[str]()
    if sys.platform != "linux":
        return found
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(("/", "socket:")) and not target.startswith(("/dev/", "/proc/")):
            found.add(f"{number} {target}")
    return found


def _tasks() -> set[object]:
    """The tasks of the running loop."""
    if sniffio.current_async_library() == "trio":
        from trio import lowlevel

        root = lowlevel.current_root_task()
        queue = [root] if root is not None else []
        found = set[object]()
        while queue:
            task = queue.pop()
            found.add(task)
            queue.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
        return found
    return set[object](asyncio.all_tasks())


def _extra_tasks(before: set[object]) -> list[str]:
    return [f"task {getattr(task, 'name', None) or task!r:.120}" for task in _tasks() - before]
