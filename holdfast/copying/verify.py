"""Comparing a session in both stores, byte for byte, in bounded memory."""

from __future__ import annotations

from typing import Final

from holdfast.backends.base import Head, LoadRequest, Snapshot
from holdfast.copying.access import Access
from holdfast.copying.log import Log, Moved

__all__ = ["difference"]

_SHOWN: Final = 60
"""Characters of a value in a message."""


async def difference(source: Access, target: Access, head: Head) -> tuple[str | None, int]:
    """The first thing in which the session is not the same in both, and how many events were looked at."""
    original, copy = await _load(source, head), await _load(target, head)
    if original is None:
        return "it was deleted at the source after it had been copied", 0
    if copy is None:
        return "it is not at the target", 0
    found = _head_difference(original.head, copy.head) or _state_difference(original, copy)
    return (found, 0) if found else await _event_difference(source, target, original.head)


async def _load(store: Access, head: Head) -> Snapshot | None:
    [snapshot] = await store.read(store.backend.load, [LoadRequest(head.id)])
    return snapshot


def _head_difference(original: Head, copy: Head) -> str | None:
    for field in Head.__struct_fields__:
        ours, theirs = getattr(original, field), getattr(copy, field)
        if ours != theirs:
            return f"its {field} is {ours!r:.{_SHOWN}} at the source, {theirs!r:.{_SHOWN}} at the target"
    return None


def _state_difference(original: Snapshot, copy: Snapshot) -> str | None:
    ours, theirs = original.state or {}, copy.state or {}
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if mine is None or other is None:
            return f"state[{key!r:.100}] is only at the {'source' if other is None else 'target'}"
        if mine.raw != other.raw:
            return f"state[{key!r:.100}] is not the same"
        if mine.version != other.version:
            return f"state[{key!r:.100}] has version {mine.version} at the source, {other.version} at the target"
    return None


async def _event_difference(source: Access, target: Access, head: Head) -> tuple[str | None, int]:
    ours, theirs = Log(source, head, head.first_seq - 1), Log(target, head, head.first_seq - 1)
    count = 0
    try:
        while (event := await ours.next()) is not None:
            if await theirs.next() != event:
                return f"event {event.id} is not the same", count
            count += 1
    except Moved as exc:
        return str(exc), count
    return None, count
