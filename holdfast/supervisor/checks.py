"""Checks of what callers pass in: every limit and form, before anything is written."""

from __future__ import annotations

import re
from typing import Any, Final

from holdfast.backends.base import Capabilities, NewEvent
from holdfast.codec import encode_typed
from holdfast.config import Limits
from holdfast.errors import InvalidInput, LimitExceeded

__all__ = ["Checks", "check_session_id", "seconds_to_us"]

_SESSION_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")


def check_session_id(session_id: object) -> str:
    """Raises: `InvalidInput` unless it is 1 to 128 visible ASCII characters."""
    if isinstance(session_id, str) and _SESSION_ID.fullmatch(session_id):
        return session_id
    shown = repr(session_id)
    raise InvalidInput(f"a session id has 1 to 128 visible ASCII characters; this is {shown[:150]}")


def seconds_to_us(name: str, seconds: object) -> int | None:
    """A duration as whole microseconds. Raises: `InvalidInput` unless it is positive and finite."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e12:
        raise InvalidInput(f"{name} must be a positive number of seconds (or None), not {seconds!r}")
    return max(1, round(seconds * 1_000_000))


class Checks:
    """The limits of one store: the settings', or the backend's own where those are lower."""

    def __init__(self, limits: Limits, capabilities: Capabilities) -> None:
        self.limits = limits
        self._max_value_bytes = min(limits.max_value_bytes, capabilities.max_value_bytes or limits.max_value_bytes)
        self._max_event_bytes = min(limits.max_event_bytes, capabilities.max_event_bytes or limits.max_event_bytes)
        self._max_unit_bytes = min(limits.max_unit_bytes, capabilities.max_unit_bytes or limits.max_unit_bytes)
        self._max_unit_keys = capabilities.max_unit_keys
        self._good_names: set[str] = {""}

    def key(self, key: object) -> str:
        if not isinstance(key, str):
            raise InvalidInput(f"a state key must be a string, not a {type(key).__name__}")
        if not key:
            raise InvalidInput("a state key must not be empty")
        _check_bytes("state key", key, self.limits.max_key_bytes)
        return key

    def value(self, key: str, value: Any) -> bytes:
        raw = encode_typed(value, f"state[{key!r:.100}]")
        if len(raw) > self._max_value_bytes:
            raise LimitExceeded(f"state[{key!r:.100}]", limit=self._max_value_bytes, actual=len(raw))
        return raw

    def name(self, what: str, name: object) -> str:
        """An event's stream or type, or an owner."""
        if not isinstance(name, str):
            raise InvalidInput(f"{what} must be a string, not a {type(name).__name__}")
        if name in self._good_names:
            return name
        _check_bytes(what, name, self.limits.max_name_bytes)
        if len(self._good_names) < 10_000:
            self._good_names.add(name)
        return name

    def event(self, data: Any, stream: str, type_: str, retry_ms: int | None, now_us: int) -> NewEvent:
        raw = encode_typed(data, "event data")
        if len(raw) > self._max_event_bytes:
            raise LimitExceeded("event data", limit=self._max_event_bytes, actual=len(raw))
        if retry_ms is not None and (type(retry_ms) is not int or not 0 <= retry_ms < 1 << 53):
            raise InvalidInput(f"retry_ms must be a whole number of milliseconds, not {retry_ms!r}")
        known = self._good_names
        if type(stream) is not str or stream not in known:
            self.name("event stream", stream)
        if type(type_) is not str or type_ not in known:
            self.name("event type", type_)
        return NewEvent(stream, type_, raw, retry_ms, now_us)

    def metadata(self, metadata: Any) -> bytes:
        if not isinstance(metadata, dict):
            raise InvalidInput(f"metadata must be a dict, not a {type(metadata).__name__}")
        raw = encode_typed(metadata, "metadata")
        if len(raw) > self.limits.max_metadata_bytes:
            raise LimitExceeded("metadata", limit=self.limits.max_metadata_bytes, actual=len(raw))
        return raw

    def unit(self, size: int, events: int, keys: int) -> None:
        if size > self._max_unit_bytes:
            raise LimitExceeded("the unit", limit=self._max_unit_bytes, actual=size)
        if self._max_unit_keys is not None and keys > self._max_unit_keys:
            raise LimitExceeded("the unit", limit=self._max_unit_keys, actual=keys, unit="keys")
        if events > self.limits.max_unit_events:
            raise LimitExceeded("the unit", limit=self.limits.max_unit_events, actual=events, unit="events")


def _check_bytes(what: str, text: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise InvalidInput(f"{what} has a lone surrogate at position {exc.start}") from None
    if size > limit:
        raise LimitExceeded(what, limit=limit, actual=size)
