"""The SQLite backend: one file, any number of processes, nothing to run beside it.

It is imported by `holdfast.open("sqlite:///…")`, not by `import holdfast`.
"""

from __future__ import annotations

from urllib.parse import SplitResult

from holdfast.backends.sqlite.backend import SQLiteBackend
from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.backends.urls import file_path, take_struct

__all__ = ["SQLiteBackend", "SQLiteConfig", "from_url"]


def from_url(url: SplitResult, params: dict[str, str]) -> SQLiteBackend:
    """``sqlite:///relative.db`` or ``sqlite:////absolute.db``; parameters are fields of `SQLiteConfig`."""
    return SQLiteBackend(take_struct(params, SQLiteConfig, path=file_path(url)))
