"""Holdfast: an actor-based session store for Python servers.

A server embeds one store:

    async with holdfast.open("sqlite:///sessions.db") as store:
        session = await store.create(owner="alice")
        await session.set("theme", "dark")
        event = await session.append({"progress": 50}, stream="task-1")
"""

from __future__ import annotations

import os
from typing import Any

from holdfast.backends.urls import create_backend
from holdfast.clock import Clock
from holdfast.config import Config
from holdfast.errors import HoldfastError
from holdfast.model import LATEST, Durability, Event, SessionInfo
from holdfast.settings import load
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import DrainReport, Supervisor
from holdfast.supervisor.unit_of_work import EventData

__all__ = [
    "LATEST",
    "Config",
    "DrainReport",
    "Durability",
    "Event",
    "EventData",
    "HoldfastError",
    "Session",
    "SessionInfo",
    "Supervisor",
    "open",
]


def open(
    url: str | None = None,
    *,
    config: Config | None = None,
    toml: str | os.PathLike[str] | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> Supervisor:
    """A store, to be entered with ``async with``.

    ``url``: ``memory://``, ``sqlite:///relative.db``, ``sqlite:////absolute.db`` …, with settings as
    parameters (``?durability=process&writer.lanes=2``); without one, ``HOLDFAST_URL`` or the TOML
    file names it. ``settings`` are fields of `Config`. Precedence: ``settings``, URL, environment
    (``HOLDFAST_…``), TOML, ``config``, defaults.

    Raises: `ConfigError`, naming the field. Nothing is opened before the block is entered.
    """
    loaded = load(url, config=config, toml=toml, overrides=settings)
    return Supervisor(create_backend(loaded.url), loaded.config, clock=clock)
