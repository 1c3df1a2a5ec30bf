"""The ``holdfast`` command: look into a store, tidy it, check it, and run the demo."""

from __future__ import annotations

from holdfast.cli.app import main

__all__ = ["main"]
