"""From the SDK's errors to Holdfast's."""

from __future__ import annotations

import asyncio
import enum
from typing import Any, Final, NamedTuple, cast

import aiohttp
from botocore import exceptions as sdk  # type: ignore[import-untyped]

from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, SchemaError, StoreError, Unavailable

__all__ = [
    "SDK_ERRORS",
    "ConditionFailed",
    "Failure",
    "Kind",
    "condition_failed",
    "error_code",
    "judge_failure",
    "translate",
]

SDK_ERRORS: Final = (sdk.BotoCoreError, sdk.ClientError, aiohttp.ClientError, OSError, asyncio.TimeoutError)
"""All that a call of the client may raise. `TimeoutError` and broken connections are `OSError`."""


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
    "RequestEntityTooLarge": Failure(Kind.REFUSED, Rejected, "the request is too large"),
    "IdempotentParameterMismatchException": Failure(Kind.REFUSED, Rejected, "the transaction's token is taken"),
}
"""By error code, or by a transaction's cancellation code. Which are tried again decides what callers see."""

_CONNECT: Final = Failure(Kind.BUSY, Unavailable, "DynamoDB cannot be reached")
_CUT: Final = Failure(Kind.BROKEN, Unavailable, "the connection to DynamoDB broke")
_NO_CREDENTIALS: Final = Failure(Kind.REFUSED, Unavailable, "no usable AWS credentials")
_MISUSED: Final = Failure(Kind.REFUSED, Unavailable, "the AWS SDK failed")


def judge_failure(exc: Exception) -> Failure:
    """What the error means. A cancelled transaction is judged by the worst of its reasons."""
    if isinstance(exc, sdk.ClientError):
        return _of_response(exc)
    if isinstance(exc, sdk.ConnectTimeoutError | sdk.EndpointConnectionError | aiohttp.ClientConnectorError):
        return _CONNECT
    if isinstance(exc, sdk.NoCredentialsError | sdk.PartialCredentialsError | sdk.CredentialRetrievalError):
        return _NO_CREDENTIALS
    if isinstance(exc, sdk.TokenRetrievalError | sdk.SSOError):
        return _NO_CREDENTIALS
    if isinstance(exc, sdk.HTTPClientError | aiohttp.ClientError | OSError | TimeoutError):
        return _CUT
    return _MISUSED


def error_code(exc: Exception) -> str:
    """Of DynamoDB's answer; empty for any other error."""
    code: str = _answer(exc).get("Error", {}).get("Code", "")
    return code


def _answer(exc: Exception) -> dict[str, Any]:
    answer = getattr(exc, "response", None)  # of errors that came without an answer: None
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}


def _of_response(exc: Exception) -> Failure:
    response, code = _answer(exc), error_code(exc)
    if code == "TransactionCanceledException":
        reasons = [reason.get("Code", "None") for reason in response.get("CancellationReasons", [])]
        failures = [BY_CODE.get(reason, _BROKEN) for reason in reasons if reason != "None"]
        return next((each for each in failures if each.kind is Kind.REFUSED), failures[0] if failures else _BROKEN)
    known = BY_CODE.get(code)
    if known is not None:
        return known
    status: int = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if status >= 500:
        return _BROKEN
    return _BUSY if status == 429 else Failure(Kind.REFUSED, Unavailable, "DynamoDB refuses the request")


def condition_failed(exc: Exception) -> ConditionFailed | None:
    """If it is that the head is not as believed; the head is the first item of each of our transactions."""
    response, code = _answer(exc), error_code(exc)
    if code == "ConditionalCheckFailedException":
        return ConditionFailed(response.get("Item") or None)
    if code == "TransactionCanceledException":
        reasons: list[dict[str, Any]] = response.get("CancellationReasons") or [{}]
        if reasons[0].get("Code") == "ConditionalCheckFailed":
            return ConditionFailed(reasons[0].get("Item") or None)
    return None


def translate(exc: Exception, *, was_sent: bool = False) -> HoldfastError:
    """The error to raise ``from exc``. ``was_sent``: it, or an attempt before it, may have taken effect."""
    failure = judge_failure(exc)
    kind = OutcomeUnknown if was_sent else failure.error
    return kind(f"{failure.meaning} ({_describe(exc)})")


def _describe(exc: Exception) -> str:
    """The code and message of an answer; else the error's name and text. Neither holds credentials."""
    if isinstance(exc, sdk.ClientError):
        error = _answer(exc).get("Error", {})
        return f"{error.get('Code', 'unknown')}: {error.get('Message', '')}"[:500]
    return f"{type(exc).__name__}: {exc}"[:500]
