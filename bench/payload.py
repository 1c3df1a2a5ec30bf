"""The one payload that every competitor stores: a progress notification of an MCP server."""

from __future__ import annotations

from typing import Any, Final

import msgspec

__all__ = ["EVENT_TYPE", "MESSAGE", "MESSAGE_JSON"]

EVENT_TYPE: Final = "message"

MESSAGE: Final[dict[str, Any]] = {
    "jsonrpc": "2.0",
    "method": "notifications/progress",
    "params": {
        "progressToken": "import-7",
        "progress": 42,
        "total": 1000,
        "message": "Processed chunk 42 of 1000: 512 rows read, 498 rows written, 14 skipped",
    },
}

MESSAGE_JSON: Final = msgspec.json.encode(MESSAGE).decode()
"""About 200 bytes."""
