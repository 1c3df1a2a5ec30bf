"""``ls``, ``show`` and ``tail``: look at sessions without touching them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, NamedTuple

import anyio
import click
import msgspec

from holdfast.backends.base import Backend, EventPage, EventQuery, Head, SessionFilter, Snapshot
from holdfast.cli import output
from holdfast.cli.store import find, now_us, open_backend, start_seq
from holdfast.errors import EventGap, SessionNotFound
from holdfast.model import Event, SessionStatus, as_datetime
from holdfast.settings import Settings

__all__ = ["TailOptions", "list_sessions", "show_session", "tail_session"]

_PAGE = 500
_LAST_BYTES = 64 << 20
_POLL_S = 1.0
"""How long to wait for the store's hint before looking anyway."""


# --- ls ----------------------------------------------------------------------

_SESSION_COLUMNS = (
    output.Column("ID"),
    output.Column("STATUS", rank=1),
    output.Column("EXPIRES", rank=2),
    output.Column("ACTIVE", rank=3),
    output.Column("EVENTS", rank=4, right=True),
    output.Column("OWNER", rank=5, cut=True),
    output.Column("CREATED", rank=6),
)


async def list_sessions(
    settings: Settings, *, owner: str | None, status: SessionStatus | None, limit: int | None, json: bool
) -> None:
    """Print the live sessions in order of creation, at most ``limit``."""
    where = SessionFilter(now_us(), owner, status)
    async with open_backend(settings) as backend:
        if json:
            async for head in _scan(backend, where, limit):
                output.print_json(output.head_json(head))
            return
        heads = [head async for head in _scan(backend, where, limit)]
        total = await backend.count_sessions(where)
    if not heads:
        output.note("no sessions")
        return
    output.table(_SESSION_COLUMNS, [_session_row(head, where.now_us) for head in heads])
    if total > len(heads):
        output.note(f"{len(heads):,} of {total:,} sessions; --limit N shows more")


async def _scan(backend: Backend, where: SessionFilter, limit: int | None) -> AsyncIterator[Head]:
    left = sys.maxsize if limit is None else limit
    after: int | None = 0
    while after is not None and left > 0:
        page = await backend.list_sessions(where, after, min(left, _PAGE))
        for head in page.heads:
            yield head
        left -= len(page.heads)
        after = page.next_after


def _session_row(head: Head, now: int) -> Sequence[str]:
    return (
        head.id,
        head.status,
        _expiry(head, now),
        output.ago(head.active_us, now),
        f"{head.last_seq - head.first_seq + 1:,}",
        head.owner or "-",
        _clock_time(head.created_us),
    )


def _expiry(head: Head, now: int) -> str:
    return "never" if head.expires_us is None else f"in {output.span(head.expires_us - now)}"


def _clock_time(us: int) -> str:
    """In the reader's time zone, to the second."""
    return as_datetime(us).astimezone().strftime("%Y-%m-%d %H:%M:%S")


# --- show --------------------------------------------------------------------

_STATE_COLUMNS = (
    output.Column("KEY", cut=True),
    output.Column("VERSION", rank=1, right=True),
    output.Column("VALUE", cut=True),
)
_EVENT_COLUMNS = (
    output.Column("ID"),
    output.Column("TIME", rank=2),
    output.Column("STREAM", rank=3, cut=True),
    output.Column("TYPE", rank=1, cut=True),
    output.Column("DATA", cut=True),
)


async def show_session(settings: Settings, session_id: str, *, events: int, json: bool) -> None:
    """Print one session: its head, its state and its last ``events`` events.

    Raises: `SessionNotFound`.
    """
    async with open_backend(settings) as backend:
        snapshot = await find(backend, session_id, with_state=True)
        page = await _last(backend, snapshot.head, events, stream=None)
    if json:
        output.print_json(_session_json(snapshot, page.events))
    else:
        _print_session(snapshot, page.events)


def _session_json(snapshot: Snapshot, events: Sequence[Event]) -> dict[str, Any]:
    state = snapshot.state or {}
    return {
        "session": output.head_json(snapshot.head),
        "state": {
            key: {"version": value.version, "value": msgspec.Raw(value.raw)} for key, value in sorted(state.items())
        },
        "events": [output.event_json(event) for event in events],
    }


def _print_session(snapshot: Snapshot, events: Sequence[Event]) -> None:
    head, now = snapshot.head, now_us()
    held = head.last_seq - head.first_seq + 1
    trimmed = f", {head.first_seq - 1:,} trimmed" if head.first_seq > 1 else ""
    output.facts(
        [
            ("id", head.id),
            ("owner", head.owner or "-"),
            ("status", head.status),
            ("created", _clock_time(head.created_us)),
            ("last active", f"{_clock_time(head.active_us)} ({output.ago(head.active_us, now)})"),
            ("expires", _expiry(head, now)),
            ("metadata", head.metadata.decode()),
            ("events", f"{held:,}{trimmed}"),
            ("version", f"{head.version:,}"),
        ]
    )
    if snapshot.state:
        click.echo()
        rows = [(key, str(value.version), value.raw.decode()) for key, value in sorted(snapshot.state.items())]
        output.table(_STATE_COLUMNS, rows)
    if events:
        click.echo()
        output.table(_EVENT_COLUMNS, [_event_row(event) for event in events])


def _event_row(event: Event) -> Sequence[str]:
    return (event.id, _clock_time(event.time_us), event.stream or "-", event.type, event.raw.decode())


async def _last(backend: Backend, head: Head, count: int, stream: str | None) -> EventPage:
    """The newest ``count`` events; the log is then read from ``scanned_seq`` on."""
    if count == 0:
        return EventPage([], head.last_seq, more=False, first_seq=head.first_seq, last_seq=head.last_seq)
    query = EventQuery(head.id, head.incarnation, stream=stream, limit=count, max_bytes=_LAST_BYTES, last=True)
    page = await backend.read_events(query)
    if page is None:
        raise SessionNotFound(head.id)
    return page


# --- tail --------------------------------------------------------------------


class TailOptions(NamedTuple):
    """``after`` wins over ``lines``."""

    after: str | None
    stream: str | None
    lines: int
    follow: bool
    json: bool


async def tail_session(settings: Settings, session_id: str, options: TailOptions) -> None:
    """Print the end of a session's log; go on with what is appended until the session is closed.

    Raises: `SessionNotFound` (also when it is deleted meanwhile), `InvalidCursor`, `EventGap`.
    """
    emit = _emit_json if options.json else _emit_line
    async with open_backend(settings) as backend:
        head = (await find(backend, session_id)).head
        if options.after is None:
            page = await _last(backend, head, options.lines, options.stream)
            for event in page.events:
                emit(event)
            seq = page.last_seq
        else:
            seq = start_seq(head, options.after)
            await _refuse_gap(backend, head, options.after, seq)
            seq = await _read_on(backend, head, options.stream, seq, emit)
        if options.follow:
            await _follow(backend, head, options.stream, seq, emit)


async def _refuse_gap(backend: Backend, head: Head, after: str, seq: int) -> None:
    if seq >= head.first_seq - 1:
        return
    oldest = await backend.read_events(EventQuery(head.id, head.incarnation, limit=1))
    first_id = oldest.events[0].id if oldest is not None and oldest.events else None
    raise EventGap(head.id, after, first_id=first_id)


async def _read_on(backend: Backend, head: Head, stream: str | None, seq: int, emit: Callable[[Event], None]) -> int:
    """Print all that is there after ``seq``; returns how far the log has been read."""
    while True:
        page = await backend.read_events(EventQuery(head.id, head.incarnation, seq, stream))
        if page is None:
            raise SessionNotFound(head.id)
        if seq < page.first_seq - 1:
            output.note(f"{page.first_seq - 1 - seq:,} events were trimmed before they could be read")
        for event in page.events:
            emit(event)
        seq = max(seq, page.scanned_seq)
        if not page.more:
            return seq


async def _follow(backend: Backend, head: Head, stream: str | None, seq: int, emit: Callable[[Event], None]) -> None:
    bell = _Bell()
    async with anyio.create_task_group() as group:
        if backend.capabilities.watches:
            group.start_soon(backend.watch, bell.ring)
        while True:
            bell.reset()  # before reading: what is committed during the read must ring again
            closed = (await find(backend, head.id)).head.status == "closed"
            seq = await _read_on(backend, head, stream, seq, emit)
            if closed:
                break
            with anyio.move_on_after(_POLL_S):
                await bell.wait()
        group.cancel_scope.cancel()
    output.note("the session is closed")


class _Bell:
    """Rung by the store's hints."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._rung = anyio.Event()

    def ring(self, _changed: Collection[int] | None) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()


def _emit_json(event: Event) -> None:
    output.print_json(output.event_json(event))


def _emit_line(event: Event) -> None:
    """One line; on a terminal, no longer than it is wide."""
    where = f"{event.stream}/{event.type}" if event.stream else event.type
    line = output.plain(f"{_clock_time(event.time_us)}  {event.seq:>5}  {where}  {event.raw.decode()}")
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        line = line if len(line) <= width else line[: width - 1] + "…"
    click.echo(line)
