"""The little of a JSON-RPC message that the manager must know before the SDK reads it."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Envelope"]


class Envelope(msgspec.Struct, frozen=True):
    """A message's frame. Everything else in the body is left unread."""

    id: int | str | None = None
    method: str | None = None

    @classmethod
    def of(cls, body: bytes) -> Envelope | None:
        """None if the body is no single JSON-RPC message: the SDK will say what is wrong with it."""
        try:
            return msgspec.json.decode(body, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    @property
    def kind(self) -> Literal["request", "answer", "other"]:
        """An answer is the client's result or error for a request of the server's."""
        if self.id is None:
            return "other"
        return "answer" if self.method is None else "request"
