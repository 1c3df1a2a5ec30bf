"""Commits: a batch as the arguments of one call, and its outcomes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, Final

from holdfast.backends.base import Batch, Marker, Outcome, SessionWrite, Status
from holdfast.backends.postgres.appends import APPEND_STATEMENT, append_columns
from holdfast.backends.postgres.driver import Connection, array_text
from holdfast.backends.postgres.errors import is_taken_id
from holdfast.backends.postgres.functions import CHANGES, CLOSES, COMMIT_PARAMETERS, DELETES
from holdfast.backends.postgres.names import Names
from holdfast.backends.rules import advance, changes_session
from holdfast.errors import OutcomeUnknown, StoreError, Unavailable
from holdfast.model import Durability

__all__ = ["Committer", "arguments", "forget_markers", "resolve"]

_SYNC: Final = {
    Durability.MEMORY: "off",
    Durability.PROCESS: "off",
    Durability.DISK: "local",
    Durability.REPLICATED: "on",
}
"""``off`` may lose the last commits if the *server* crashes, and nothing if this process does."""

_COMMITTED: Final = Status.COMMITTED

_SENT_AS_TEXT: Final = frozenset({"int[]", "bigint[]", "boolean[]"})
"""See `array_text`."""

_ATTEMPTS: Final = 5
"""At creations of the same id by several instances in the same moment."""


class Committer:
    """`Backend.commit` on a connection."""

    def __init__(self, names: Names) -> None:
        places = ", ".join(
            f"${number}::text::{kind}" if kind in _SENT_AS_TEXT else f"${number}"
            for number, (_, kind) in enumerate(COMMIT_PARAMETERS, 1)
        )
        self._commit: Final = names.sql(f"SELECT * FROM @commit({places})")  # noqa: S608
        self._append: Final = names.sql(APPEND_STATEMENT)

    async def commit(self, connection: Connection, batch: Batch) -> list[Outcome]:
        order, columns = await self._send(connection, batch)
        if batch.durability is Durability.REPLICATED:
            await _check_standbys(connection, OutcomeUnknown)
        return _outcomes(order, columns)

    async def _send(self, connection: Connection, batch: Batch) -> tuple[Sequence[int], Sequence[Any]]:
        """The places of the writes, and the columns of their outcomes."""
        appended = append_columns(batch)
        if appended is not None:
            order, *columns = await _call(connection, self._append, (*_head(batch), *appended))
            return order, columns
        values, order = arguments(batch)
        return order, await _call(connection, self._commit, values)


async def _call(connection: Connection, statement: str, values: Sequence[Any]) -> Sequence[Any]:
    """Raises: `Unavailable` if the flush is void."""
    attempts = _ATTEMPTS
    while True:
        try:
            with _replicated(connection, OutcomeUnknown):
                row: Sequence[Any] = await connection.fetchrow(statement, *values)
        except Exception as exc:
            attempts -= 1
            if not attempts or not is_taken_id(exc):
                raise
        else:
            break
    if row[0] is None:
        raise Unavailable("the flush came too late: it was declared void, or a later one of its lane has committed")
    return row


@contextmanager
def _replicated(connection: Connection, otherwise: type[StoreError]) -> Generator[None]:
    """Raises ``otherwise`` if the server has committed, but was told not to wait for its standby any longer.

    It says so in a warning alone, whose words depend on its language.
    """
    given_up = list[object]()

    def hear(_connection: object, message: Any) -> None:
        if message.server_source_function == "SyncRepWaitForLSN":
            given_up.append(message)

    connection.add_log_listener(hear)
    try:
        yield
    finally:
        connection.remove_log_listener(hear)
    if given_up:
        raise otherwise("the wait for a standby was cancelled: it may not have the commit")


async def _check_standbys(connection: Connection, otherwise: type[StoreError]) -> None:
    """After a commit that waited for a standby: whoever empties that setting lets all go that wait, without a word."""
    if not await connection.fetchval("SELECT current_setting('synchronous_standby_names') <> ''"):
        raise otherwise("synchronous_standby_names is empty: no standby may have the commit")


def arguments(batch: Batch) -> tuple[tuple[Any, ...], list[int]]:
    """The values of `COMMIT_PARAMETERS`, and for each row the place of its write in the batch."""
    order = list(range(len(batch.writes)))
    order.sort(key=lambda place: _sort_key(batch.writes[place]))
    ordered = [batch.writes[place] for place in order]
    writes = [write for write in ordered if write.create is None]
    creations = [write for write in ordered if write.create is not None]
    columns = (order, *_existing(writes), *_created(creations, batch.max_events), *_content(ordered))
    kinds = (kind for _, kind in COMMIT_PARAMETERS[-len(columns) :])
    sent = (
        array_text(column) if kind in _SENT_AS_TEXT else column for column, kind in zip(columns, kinds, strict=True)
    )
    return (*_head(batch), *sent), order


def _head(batch: Batch) -> tuple[Any, ...]:
    """What both functions begin with."""
    return (*batch.marker, batch.now_us, _SYNC[batch.durability], batch.max_events)


def _sort_key(write: SessionWrite) -> tuple[bool, int, str]:
    return (False, write.incarnation, "") if write.create is None else (True, 0, write.id)


def _existing(writes: Sequence[SessionWrite]) -> tuple[list[Any], ...]:
    """The columns ``w_…``."""
    accepted = [write.accepted_us for write in writes]
    active = [write.active_us for write in writes]
    return (
        [write.incarnation for write in writes],
        [write.id for write in writes],
        accepted,
        active if active != accepted else [],
        [write.version if write.fenced else None for write in writes] if any(write.fenced for write in writes) else [],
        _unless_all([write.units for write in writes], 1),
        _unless_all([len(write.events) for write in writes], 1),
        _unless_all([_flags(write) for write in writes], CHANGES),
        [write.floor_seq for write in writes] if any(write.floor_seq for write in writes) else [],
        [write.metadata for write in writes] if any(write.metadata is not None for write in writes) else [],
    )


def _flags(write: SessionWrite) -> int:
    return CHANGES * changes_session(write) + CLOSES * write.close + DELETES * write.delete


def _unless_all(column: list[Any], usual: object) -> list[Any]:
    """Empty if every value is the usual one, which is understood then: a value costs the driver 0.2 to 0.4 µs."""
    return [] if column.count(usual) == len(column) else column


def _created(creations: Sequence[SessionWrite], max_events: int | None) -> tuple[list[Any], ...]:
    """The columns ``c_…``: rows as they will stand, since nobody can have changed them."""
    if not creations:
        return tuple(list[Any]() for name, _ in COMMIT_PARAMETERS if name.startswith("c_"))
    before = [write.create for write in creations if write.create is not None]
    after = [advance(head, write, max_events) for head, write in zip(before, creations, strict=True)]
    return (
        [head.incarnation for head in after],
        [head.id for head in after],
        [write.accepted_us for write in creations],
        [None if head.owner is None else head.owner.encode() for head in after],
        [head.created_us for head in after],
        [head.active_us for head in after],
        [head.ttl_us for head in after],
        [head.deadline_us for head in after],
        [head.status == "closed" for head in after],
        [head.metadata for head in after],
        [head.first_seq for head in after],
        [head.last_seq for head in after],
        [head.version for head in after],
        [head.version for head in before],
        [head.last_seq for head in before],
        [head.first_seq for head in before],
        [not write.delete for write in creations],
    )


def _content(writes: Sequence[SessionWrite]) -> tuple[list[Any], ...]:
    """The columns ``x_…``, ``r_…``, ``s_…`` and ``e_…``."""
    cleared = list[int]()
    removes: tuple[list[Any], ...] = ([], [])
    sets: tuple[list[Any], ...] = ([], [], [], [])
    events: tuple[list[Any], ...] = ([], [], [], [], [], [], [])
    remove_of, remove_key = removes
    set_of, set_key, set_value, set_offset = sets
    event_of, number_of, streams, types, data, retries, times = events
    for place, write in enumerate(writes, 1):
        if write.delete:
            continue
        if write.cleared:
            cleared.append(place)
        for key in write.removes:
            remove_of.append(place)
            remove_key.append(key.encode())
        for key, (raw, offset) in write.sets.items() if write.sets else ():
            set_of.append(place)
            set_key.append(key.encode())
            set_value.append(raw)
            set_offset.append(offset)
        for number, event in enumerate(write.events, 1):
            event_of.append(place)
            number_of.append(number)
            streams.append(event.stream.encode())
            types.append(event.type.encode())
            data.append(event.raw)
            retries.append(event.retry_ms)
            times.append(event.time_us)
    if event_of == list(range(1, len(writes) + 1)):
        event_of.clear()
    usual = (
        event_of,
        _unless_all(number_of, 1),
        _unless_all(streams, b""),
        _unless_all(types, b"message"),
        data,
        _unless_all(retries, None),
        times,
    )
    return (cleared, *removes, *sets, *usual)


def _outcomes(order: Sequence[int], columns: Sequence[Any]) -> list[Outcome]:
    """The rows' outcomes in the order of the batch. Without statuses all are committed."""
    statuses, *numbers = columns
    outcomes: list[Outcome] = [Outcome(Status.MISSING)] * len(order)
    for place, status, version, seq, base_first, first in zip(
        order, statuses or repeat(_COMMITTED, len(order)), *numbers, strict=True
    ):
        if not status:
            outcomes[place] = Outcome(_COMMITTED, version, seq, base_first, first)
        else:
            outcomes[place] = Outcome(Status(status))
    return outcomes


async def resolve(connection: Connection, names: Names, marker: Marker, now_us: int) -> list[Outcome] | None:
    """`Backend.resolve`: waits for the commit if it is under way; if it did not happen, it never will."""
    statement = names.sql("SELECT * FROM @resolve($1, $2, $3, $4)")
    with _replicated(connection, Unavailable):
        sync, order, *columns = await connection.fetchrow(statement, *marker, now_us)
    if order is None:
        return None
    if sync == _SYNC[Durability.REPLICATED]:
        await _check_standbys(connection, Unavailable)
    return _outcomes(order, columns)


async def forget_markers(connection: Connection, names: Names, writer: str | None, before_us: int) -> None:
    """Keeps the young ones by which a flush was declared void: it may still be on its way here."""
    await connection.execute(
        names.sql("DELETE FROM @markers WHERE (writer = $1 AND voided = 0) OR time_us < $2"),
        writer,
        before_us,
    )
