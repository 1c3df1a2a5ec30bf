"""The little of a JSON-RPC message that the manager must know before the SDK reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
from mcp_types import JSONRPCMessage, RequestId, jsonrpc_message_adapter
from pydantic import ValidationError

__all__ = ["Envelope"]


class _Frame(msgspec.Struct, frozen=True):
    """A message's frame. Everything else in the body is left unread."""

    id: int | str | None = None
    method: str | None = None


@dataclass(frozen=True)
class Envelope:
    """A message's frame, and the body around it."""

    id: RequestId | None
    method: str | None
    body: bytes

    @classmethod
    def of(cls, body: bytes) -> Envelope | None:
        """None if the body is no single JSON-RPC message: the SDK will say what is wrong with it."""
        try:
            frame = msgspec.json.decode(body, type=_Frame)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return cls(frame.id, frame.method, body)

    @property
    def kind(self) -> Literal["request", "answer", "other"]:
        """An answer is the client's result or error for a request of the server's."""
        if self.id is None:
            return "other"
        return "answer" if self.method is None else "request"

    def message(self) -> JSONRPCMessage | None:
        """All of it; None if it is no JSON-RPC message after all."""
        try:
            return jsonrpc_message_adapter.validate_json(self.body, by_name=False)
        except ValidationError:
            return None
