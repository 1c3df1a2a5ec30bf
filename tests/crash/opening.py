"""How every process of these tests opens a store. What starts servers is elsewhere, so that workers begin at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.backends.base import Backend
from holdfast.backends.urls import create_backend
from holdfast.settings import load
from holdfast.supervisor.supervisor import Supervisor

__all__ = ["open_store", "sqlite_url"]


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
