"""AWS Signature Version 4, for the one kind of request that there is here: a POST without a query.

Written by AWS's description of it ("Create a signed AWS API request", IAM User Guide). The SDK's own
signer takes ten times as long, as it knows every kind; a test compares the two.
"""

from __future__ import annotations

import hmac
from datetime import datetime, timezone
from hashlib import sha256
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

__all__ = ["Credentials", "Signer"]

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SERVICE: Final = "dynamodb"
_CONTENT_TYPE: Final = "application/x-amz-json-1.0"
_TARGET: Final = "DynamoDB_20120810."
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Credentials(Protocol):
    """As the SDK hands them out: those of one moment."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def token(self) -> str | None:
        """Of temporary credentials."""
        ...


class Signer:
    """Makes the headers of requests to one endpoint."""

    def __init__(self, endpoint: str, region: str) -> None:
        parts = urlsplit(endpoint)
        path = parts.path or "/"
        self.url: Final = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
        """Where to send them."""
        self._host: Final = _host(endpoint)
        self._path: Final = quote(path, safe="/~")
        self._region: Final = region
        self._key_of: tuple[str, str] = ("", "")
        self._key = b""

    def headers(
        self, operation: str, body: bytes, credentials: Credentials, now: datetime | None = None
    ) -> dict[str, str]:
        """Those that DynamoDB asks for. ``now`` in UTC; AWS refuses what is some minutes off its own clock."""
        time = (now or datetime.now(timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
        target, token, day = _TARGET + operation, credentials.token, time[:8]
        # names ascending, as they are signed
        canonical = f"content-type:{_CONTENT_TYPE}\nhost:{self._host}\nx-amz-date:{time}\n"
        names = "content-type;host;x-amz-date;x-amz-target"
        headers = {
            "Host": self._host,
            "Content-Type": _CONTENT_TYPE,
            "X-Amz-Date": time,
            "X-Amz-Target": target,
        }
        if token:
            canonical += f"x-amz-security-token:{token}\n"
            names = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target"
            headers["X-Amz-Security-Token"] = token
        request = f"POST\n{self._path}\n\n{canonical}x-amz-target:{target}\n\n{names}\n{sha256(body).hexdigest()}"
        scope = f"{day}/{self._region}/{_SERVICE}/aws4_request"
        signed = f"{_ALGORITHM}\n{time}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._signing_key(credentials.secret_key, day), signed.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _signing_key(self, secret: str, day: str) -> bytes:
        """Good for a day; the last one is kept."""
        if self._key_of != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, _SERVICE, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key_of, self._key = (secret, day), key
        return self._key


def _host(endpoint: str) -> str:
    """As it is signed and sent: small letters, without the scheme's own port."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return host if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f"{host}:{parts.port}"
