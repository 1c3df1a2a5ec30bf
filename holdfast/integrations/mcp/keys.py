"""The names under which the adapter keeps its things in a session."""

from __future__ import annotations

from typing import Final

__all__ = ["HANDSHAKE_KEY", "MESSAGE", "PRIMING", "REQUEST_KEY", "RESERVED", "RESPONSE", "STANDALONE"]

RESERVED: Final = "mcp:"
"""State keys that begin so are the adapter's own."""

HANDSHAKE_KEY: Final = RESERVED + "handshake"
REQUEST_KEY: Final = RESERVED + "request:"
"""Before the stream's name: the record of a request that runs."""

PRIMING: Final = "priming"
MESSAGE: Final = "message"
RESPONSE: Final = "response"
"""The types of stored events. A response is final: nothing of its request follows it."""

STANDALONE: Final = "_GET_stream"
"""The SDK's name for the stream that belongs to no request. A test compares it."""
