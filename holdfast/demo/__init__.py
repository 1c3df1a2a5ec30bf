"""The demo: real MCP servers are killed in mid-stream, and their client loses nothing.

``holdfast demo``, or ``python -m holdfast.demo``. Needs the extra ``mcp``.
"""

from __future__ import annotations

from holdfast.demo.result import DemoResult
from holdfast.demo.run import main, run_demo

__all__ = ["DemoResult", "main", "run_demo"]
