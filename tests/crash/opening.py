"""How every process of these tests runs and opens a store. What starts servers is elsewhere: workers begin at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import structlog

from holdfast.backends.base import Backend
from holdfast.backends.urls import create_backend
from holdfast.settings import load
from holdfast.supervisor.supervisor import Supervisor

__all__ = ["open_store", "run_worker", "sqlite_url"]


def sqlite_url(path: Path | str) -> str:
    return f"sqlite:///{path}"


def _share_journals_eagerly() -> None:
    """DynamoDB: sessions join a journal at their first write, and at once again when another instance has ended it."""
    from holdfast.backends.dynamodb import journals

    journals.JOINS_AFTER = journals.REST_S = 0


def _unchanged(backend: Backend) -> Backend:
    return backend


def open_store(url: str, *, variant: Callable[[Backend], Backend] = _unchanged, **settings: Any) -> Supervisor:
    """A supervisor on the store that keeps everything for ever. ``settings`` may have dotted names."""
    if "journal_from=1&" in url:
        _share_journals_eagerly()
    loaded = load(url, env={}, overrides={"ttl_s": None, "retention.max_events": None, **settings})
    return Supervisor(variant(create_backend(loaded.url)), loaded.config)


def run_worker(loop: str, work: Callable[..., Awaitable[None]], *args: object) -> None:
    """Run a worker's coroutine function on "asyncio", "uvloop" or "trio". Only what is critical is logged."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if loop == "trio":
        anyio.run(work, *args, backend="trio")
    else:
        anyio.run(work, *args, backend="asyncio", backend_options={"use_uvloop": loop == "uvloop"})
