"""Store URLs, with parameters added."""

from __future__ import annotations

from urllib.parse import urlencode

__all__ = ["with_params"]


def with_params(url: str, **params: str) -> str:
    """``url``, which may have parameters of its own, with these ones too."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(params)}"
