"""The demo: real MCP servers are killed in mid-stream, and their client loses nothing.

``holdfast demo``, or ``python -m holdfast.demo``. Needs the extra ``mcp``; see `holdfast.demo.run`. This module
imports nothing, so that the demo's processes load only what each needs.
"""
