"""``stats`` and ``gc``: figures of a store, and its housekeeping on demand."""

from __future__ import annotations

import click
import msgspec

from holdfast.backends.base import SessionFilter
from holdfast.backends.urls import create_backend
from holdfast.cli import output
from holdfast.cli.store import now_us, open_backend, refuse_missing
from holdfast.settings import Settings, redact, split_url

__all__ = ["collect_garbage", "print_statistics"]


async def print_statistics(settings: Settings, *, json: bool) -> None:
    """Print how many sessions there are, and what the backend says of itself."""
    async with open_backend(settings) as backend:
        now = now_us()
        counts = {
            "live": await backend.count_sessions(SessionFilter(now)),
            "active": await backend.count_sessions(SessionFilter(now, status="active")),
            "closed": await backend.count_sessions(SessionFilter(now, status="closed")),
        }
        facts = await backend.describe()
        capabilities = backend.capabilities
    if json:
        output.print_json(
            {
                "url": redact(settings.url),
                "sessions": counts,
                "capabilities": msgspec.to_builtins(capabilities),
                "backend": facts,
            }
        )
        return
    output.facts(
        [
            ("store", redact(settings.url)),
            ("sessions", f"{counts['live']:,} ({counts['active']:,} active, {counts['closed']:,} closed)"),
            ("best durability", capabilities.durability.value),
            *((name.replace("_", " "), _shown(value)) for name, value in facts.items()),
        ]
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


async def collect_garbage(settings: Settings, *, json: bool) -> None:
    """Remove expired sessions and the rows of trimmed events, all of them, and say how many."""
    from holdfast.supervisor.supervisor import Supervisor  # the only command that runs an engine

    refuse_missing(split_url(settings.url))
    config = msgspec.structs.replace(settings.config, background=False)
    async with Supervisor(create_backend(settings.url), config) as store:
        expired = await store.expire()
        trimmed = await store.trim()
    if json:
        output.print_json({"expired": [session.id for session in expired], "events_deleted": trimmed})
    else:
        click.echo(f"{len(expired):,} expired sessions removed, {trimmed:,} trimmed events deleted")
