"""Durable sessions for MCP servers built on the official SDK (mcp >= 2.3, < 3).

Covers the protocol versions that have sessions, up to 2025-11-25: sessions, their streams and their
tools' state survive restarts and move between instances. `streamable_http_app` is all that most
servers need; `current_session` gives tools their state and events.

Any instance takes any message. The answer to a question that a tool asks the client (sampling, elicitation,
roots) is handed to the instance that asked, a cancellation to the one that runs the request; the
latter is noticed there once the request has run for a third of the lease.
"""

from __future__ import annotations

from holdfast.integrations.mcp.app import streamable_http_app
from holdfast.integrations.mcp.context import ToolSession, current_session
from holdfast.integrations.mcp.events import SessionEventStore
from holdfast.integrations.mcp.lease import Lease
from holdfast.integrations.mcp.manager import HoldfastSessionManager
from holdfast.integrations.mcp.requests import REQUEST_LOST

__all__ = [
    "REQUEST_LOST",
    "HoldfastSessionManager",
    "Lease",
    "SessionEventStore",
    "ToolSession",
    "current_session",
    "streamable_http_app",
]
