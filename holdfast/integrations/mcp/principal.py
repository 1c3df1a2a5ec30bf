"""Who a request comes from, as the owner of a Holdfast session."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, authorization_context

__all__ = ["owner_of"]

_MAX_OWNER_BYTES: Final = 256


def owner_of(scope: Mapping[str, Any]) -> str | None:
    """The principal of an ASGI request in one stable string; None without authentication.

    Client id, issuer and subject as a JSON array, so that no two principals share a string. One
    that is too long for an owner is replaced by its SHA-256.
    """
    user = scope.get("user")
    if not isinstance(user, AuthenticatedUser):
        return None
    context = authorization_context(user)
    parts = msgspec.json.encode([context["client_id"], context["issuer"], context["subject"]])
    if len(parts) <= _MAX_OWNER_BYTES:
        return parts.decode()
    return f"sha256:{hashlib.sha256(parts).hexdigest()}"
