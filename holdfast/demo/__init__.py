"""The demo: a real MCP server is killed in mid-stream, twice, and its client loses nothing.

``holdfast demo``, or ``python -m holdfast.demo``. Needs the extra ``mcp``.
"""

from __future__ import annotations

from holdfast.demo.run import DemoResult, main, run_demo

__all__ = ["DemoResult", "main", "run_demo"]
