"""The names under which the adapter keeps its things in a session."""

from __future__ import annotations

from typing import Final

__all__ = [
    "HANDSHAKE_KEY",
    "INBOX",
    "MESSAGE",
    "PRIMING",
    "QUESTION_KEY",
    "REQUEST_KEY",
    "RESERVED",
    "RESPONSE",
    "STANDALONE",
]

RESERVED: Final = "mcp:"
"""State keys that begin so are the adapter's own, and one stream."""

HANDSHAKE_KEY: Final = RESERVED + "handshake"
REQUEST_KEY: Final = RESERVED + "request:"
"""Before the stream's name: the record of a request that runs."""
QUESTION_KEY: Final = RESERVED + "question:"
"""Before a question's id: the record of who waits for its answer."""

PRIMING: Final = "priming"
MESSAGE: Final = "message"
RESPONSE: Final = "response"
"""The types of stored events. A response is final: nothing of its request follows it."""

STANDALONE: Final = "_GET_stream"
"""The SDK's name for the stream that belongs to no request. A test compares it."""

INBOX: Final = RESERVED + "inbox"
"""The stream of messages from the client that wait for another instance than the one they came to."""
