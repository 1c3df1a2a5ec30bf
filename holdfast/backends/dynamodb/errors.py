"""From DynamoDB's errors, and those of the way there, to Holdfast's."""

from __future__ import annotations

import asyncio
import enum
from typing import Any, Final, NamedTuple

import aiohttp
from botocore import exceptions as sdk  # type: ignore[import-untyped]

from holdfast.backends.dynamodb.wire import ErrorAnswer, Garbled
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, SchemaError, StoreError, Unavailable

__all__ = [
    "ERRORS",
    "ConditionFailed",
    "Failure",
    "Kind",
    "condition_failed",
    "error_code",
    "judge_failure",
    "translate",
]

ERRORS: Final = (
    ErrorAnswer, Garbled, sdk.BotoCoreError, sdk.ClientError, aiohttp.ClientError, OSError, asyncio.TimeoutError,
)  # fmt: skip
"""All that sending a request may raise. `TimeoutError` and broken connections are `OSError`."""


class ConditionFailed(Exception):
    """The head is not as it was believed to be. Nothing was written."""

    def __init__(self, item: dict[str, Any] | None) -> None:
        super().__init__("the condition of a write failed")
        self.item = item
        """The head as it is; None: there is none."""


class Kind(enum.Enum):
    """What a failed request means."""

    REFUSED = "refused"
    """Not done, and not worth trying again as it is."""
    BUSY = "busy"
    """Not done; try again, later each time."""
    BROKEN = "broken"
    """May have been done; try again: each request can take effect once only."""


class Failure(NamedTuple):
    """A row of the table of errors."""

    kind: Kind
    error: type[StoreError]
    meaning: str


_BUSY: Final = Failure(Kind.BUSY, Unavailable, "DynamoDB throttles")
_CONFLICT: Final = Failure(Kind.BUSY, Unavailable, "another transaction holds the session")
_BROKEN: Final = Failure(Kind.BROKEN, Unavailable, "DynamoDB failed")
_DENIED: Final = Failure(Kind.REFUSED, Unavailable, "AWS refuses the credentials")

BY_CODE: Final[dict[str, Failure]] = {
    "ProvisionedThroughputExceededException": _BUSY,
    "ProvisionedThroughputExceeded": _BUSY,
    "ThrottlingException": _BUSY,
    "ThrottlingError": _BUSY,
    "Throttling": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "LimitExceededException": _BUSY,
    "TransactionConflictException": _CONFLICT,
    "TransactionConflict": _CONFLICT,
    "TransactionInProgressException": Failure(Kind.BROKEN, Unavailable, "the same transaction is in progress"),
    "InternalServerError": _BROKEN,
    "InternalFailure": _BROKEN,
    "ServiceUnavailable": _BROKEN,
    "ServiceUnavailableException": _BROKEN,
    "RequestTimeout": _BROKEN,
    "RequestTimeoutException": _BROKEN,
    "ExpiredTokenException": Failure(Kind.REFUSED, Unavailable, "the AWS credentials have expired"),
    "ExpiredToken": Failure(Kind.REFUSED, Unavailable, "the AWS credentials have expired"),
    "UnrecognizedClientException": _DENIED,
    "InvalidClientTokenId": _DENIED,
    "InvalidSignatureException": _DENIED,
    "IncompleteSignatureException": _DENIED,
    "MissingAuthenticationTokenException": _DENIED,
    "MissingAuthenticationToken": _DENIED,
    "OptInRequired": _DENIED,
    "AccessDeniedException": Failure(Kind.REFUSED, Unavailable, "access to the table is denied"),
    "ResourceNotFoundException": Failure(Kind.REFUSED, SchemaError, "there is no such table"),
    "ValidationException": Failure(Kind.REFUSED, Rejected, "DynamoDB refuses the request"),
    "ValidationError": Failure(Kind.REFUSED, Rejected, "DynamoDB refuses the request"),
    "ItemCollectionSizeLimitExceededException": Failure(Kind.REFUSED, Rejected, "the session is too large"),
    "ItemCollectionSizeLimitExceeded": Failure(Kind.REFUSED, Rejected, "the session is too large"),
    "413": Failure(Kind.REFUSED, Rejected, "the request is too large"),
    "IdempotentParameterMismatchException": Failure(Kind.REFUSED, Rejected, "the transaction's token is taken"),
}
"""By error code, or by a transaction's cancellation code. Which are tried again decides what callers see."""

_CONNECT: Final = Failure(Kind.BUSY, Unavailable, "DynamoDB cannot be reached")
_CUT: Final = Failure(Kind.BROKEN, Unavailable, "the connection to DynamoDB broke")
_GARBLED: Final = Failure(Kind.BROKEN, Unavailable, "DynamoDB cannot be understood")
_NO_CREDENTIALS: Final = Failure(Kind.REFUSED, Unavailable, "no usable AWS credentials")
_MISUSED: Final = Failure(Kind.REFUSED, Unavailable, "the AWS SDK failed")


def judge_failure(exc: Exception) -> Failure:
    """What the error means. A cancelled transaction is judged by the worst of its reasons."""
    if isinstance(exc, ErrorAnswer):
        return _of_answer(exc)
    if isinstance(exc, Garbled):
        return _GARBLED
    if isinstance(exc, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError | aiohttp.ConnectionTimeoutError):
        return _CONNECT
    if isinstance(exc, sdk.NoCredentialsError | sdk.PartialCredentialsError | sdk.CredentialRetrievalError):
        return _NO_CREDENTIALS
    if isinstance(exc, sdk.TokenRetrievalError | sdk.SSOError | sdk.ClientError):  # the last: of another service
        return _NO_CREDENTIALS
    if isinstance(exc, aiohttp.ClientError | OSError | TimeoutError):
        return _CUT
    return _MISUSED


def error_code(exc: Exception) -> str:
    """Of DynamoDB's answer; empty for any other error."""
    return exc.code if isinstance(exc, ErrorAnswer) else ""


def _of_answer(error: ErrorAnswer) -> Failure:
    if error.code == "TransactionCanceledException":
        codes = [reason.get("Code") or "None" for reason in error.reasons]
        failures = [BY_CODE.get(code, _BROKEN) for code in codes if code != "None"]
        return next((each for each in failures if each.kind is Kind.REFUSED), failures[0] if failures else _BROKEN)
    known = BY_CODE.get(error.code)
    if known is not None:
        return known
    if error.status >= 500:
        return _BROKEN
    return _BUSY if error.status == 429 else Failure(Kind.REFUSED, Unavailable, "DynamoDB refuses the request")


def condition_failed(exc: Exception) -> ConditionFailed | None:
    """If it is that the head is not as believed; the head is the first item of each of our transactions."""
    if not isinstance(exc, ErrorAnswer):
        return None
    if exc.code == "ConditionalCheckFailedException":
        return ConditionFailed(exc.item or None)
    head = exc.reasons[0] if exc.reasons else {}
    return ConditionFailed(head.get("Item") or None) if head.get("Code") == "ConditionalCheckFailed" else None


def translate(exc: Exception, *, was_sent: bool = False) -> HoldfastError:
    """The error to raise ``from exc``. ``was_sent``: it, or an attempt before it, may have taken effect."""
    failure = judge_failure(exc)
    kind = OutcomeUnknown if was_sent else failure.error
    return kind(f"{failure.meaning} ({_describe(exc)})")


def _describe(exc: Exception) -> str:
    """The code and message of an answer; else the error's name and text. Neither holds credentials."""
    if isinstance(exc, ErrorAnswer):
        return str(exc)[:500]
    if isinstance(exc, aiohttp.ClientResponseError):  # its text has the URL, and so a proxy's password
        return f"{type(exc).__name__}: {exc.status} {exc.message}"[:500]
    return f"{type(exc).__name__}: {exc}"[:500]
