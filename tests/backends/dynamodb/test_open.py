"""Opening, creating and checking the table; settings; errors by a table; nothing secret in what is shown."""

from __future__ import annotations

from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as sdk
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from holdfast.backends.dynamodb import DynamoDBBackend, DynamoDBConfig
from holdfast.backends.dynamodb.errors import BY_CODE, Kind, condition_failed, judge_failure, translate
from holdfast.backends.dynamodb.schema import definition
from holdfast.backends.dynamodb.wire import ErrorAnswer, Garbled
from holdfast.backends.urls import create_backend
from holdfast.errors import ConfigError, OutcomeUnknown, Rejected, SchemaError, StoreClosed, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.servers.dynamodb import config_for, fast_endpoint
from tests.servers.http_proxy import Failing, HttpProxy
from tests.servers.processes import free_port

pytestmark = pytest.mark.anyio


# --- settings ----------------------------------------------------------------


def test_settings_come_from_the_url() -> None:
    backend = create_backend("dynamodb://My_Table.1-x?region=eu-central-1&create=true&max_concurrency=8&verify=false")
    assert isinstance(backend, DynamoDBBackend)
    expected = DynamoDBConfig(table="My_Table.1-x", region="eu-central-1", create=True, max_concurrency=8, verify=False)
    assert backend._config == expected


def test_an_endpoint_may_be_written_plainly() -> None:
    backend = create_backend("dynamodb://table?endpoint=http://127.0.0.1:8000")
    assert isinstance(backend, DynamoDBBackend)
    assert backend._config.endpoint == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("dynamodb://", "table"),
        ("dynamodb://ab", "table"),
        ("dynamodb://a%20b%20c", "table"),
        ("dynamodb://x'; DROP TABLE", "table"),
        ("dynamodb://" + "x" * 256, "table"),
        ("dynamodb://table/more", "url"),
        ("dynamodb://key:secret@table", "url"),
        ("dynamodb://table:8000", "url"),
        ("dynamodb://table?region=EU Central", "region"),
        ("dynamodb://table?endpoint=127.0.0.1:8000", "endpoint"),
        ("dynamodb://table?max_concurrency=0", "max_concurrency"),
        ("dynamodb://table?request_timeout_s=-1", "request_timeout_s"),
        ("dynamodb://table?aws_secret_access_key=x", "aws_secret_access_key"),
        ("dynamodb://table?create=perhaps", "create"),
    ],
)
def test_wrong_settings_are_named(url: str, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        create_backend(url)
    assert refused.value.field == field
    assert "secret@" not in str(refused.value)


async def test_a_missing_region_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError) as refused:
        await DynamoDBBackend(DynamoDBConfig(table="table")).open()
    assert refused.value.field == "region"


async def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        await DynamoDBBackend(DynamoDBConfig(table="table", profile="nobody", region="eu-central-1")).open()
    assert refused.value.field == "profile"


# --- the table ---------------------------------------------------------------


async def test_the_table_is_made_once_by_many() -> None:
    config = config_for(fast_endpoint())
    backends = [DynamoDBBackend(config) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for backend in backends:
            tasks.start_soon(backend.open)
    facts = await backends[0].describe()
    assert (facts["table"], facts["status"]) == (config.table, "ACTIVE")
    ttl = await backends[0]._bridge.call(_ttl, backends[0])
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "ttl")
    for backend in backends:
        await backend.close()


async def _ttl(backend: DynamoDBBackend) -> dict[str, Any]:
    answer = await backend._table.call("DescribeTimeToLive", TableName=backend._table.name)
    found: dict[str, Any] = answer["TimeToLiveDescription"]
    return found


async def test_a_missing_table_is_said_to_be_missing() -> None:
    backend = DynamoDBBackend(config_for(fast_endpoint(), create=False))
    with pytest.raises(SchemaError, match="no such table"):
        await backend.open()
    with pytest.raises(StoreClosed):
        await backend.describe()


@pytest.mark.parametrize("lacks", ["sort key", "index", "index key"])
async def test_a_foreign_table_is_refused(lacks: str) -> None:
    config = config_for(fast_endpoint(), create=False)
    wanted = definition(config.table)
    if lacks == "sort key":
        wanted["KeySchema"][1]["AttributeName"] = "u"
        wanted["AttributeDefinitions"] = [
            each for each in wanted["AttributeDefinitions"] if each["AttributeName"] != "sk"
        ]
    elif lacks == "index":
        wanted["GlobalSecondaryIndexes"].pop()
        wanted["AttributeDefinitions"] = [
            each for each in wanted["AttributeDefinitions"] if each["AttributeName"] not in ("e", "u")
        ]
    else:
        wanted["GlobalSecondaryIndexes"][0]["KeySchema"][1]["AttributeName"] = "u"
    maker = DynamoDBBackend(config_for(fast_endpoint(), table=config.table, create=False, verify=False))
    await maker.open()
    await maker._bridge.call(maker._table.create, wanted)
    await maker.close()
    with pytest.raises(SchemaError, match="has not the keys"):
        await DynamoDBBackend(config).open()


async def test_a_store_that_is_away_is_unavailable(clock: ManualClock) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match="cannot be reached"):
        await DynamoDBBackend(config_for(endpoint, create=False)).open()
    cold = DynamoDBBackend(config_for(endpoint, create=False, verify=False))
    await cold.open()
    try:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await Direct(cold, clock).create("s")
    finally:
        await cold.close()


async def test_a_cancelled_open_leaves_nothing() -> None:
    with HttpProxy(fast_endpoint()) as proxy:
        proxy.inject(Failing.SILENT_BEFORE, times=None)
        backend = DynamoDBBackend(config_for(proxy.url))
        with anyio.move_on_after(0.1) as scope:
            await backend.open()
        assert scope.cancelled_caught
        with pytest.raises(StoreClosed):
            _ = backend.capabilities


async def test_the_promise_depends_on_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint, promised in [
        (None, Durability.REPLICATED),
        ("https://vpce-1-abc.dynamodb.eu-central-1.vpce.amazonaws.com", Durability.REPLICATED),
        ("http://127.0.0.1:8000", Durability.PROCESS),
        ("http://amazonaws.com.example.org:8000", Durability.PROCESS),
    ]:
        backend = DynamoDBBackend(DynamoDBConfig(table="table", region="eu-central-1", endpoint=endpoint, verify=False))
        await backend.open()
        assert backend.capabilities.durability is promised, endpoint
        await backend.close()


async def test_nothing_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """C53: in facts, errors and representations."""
    backend = DynamoDBBackend(config_for(fast_endpoint()))
    await backend.open()
    try:
        shown = [str(await backend.describe()), repr(backend), repr(backend._config)]
    finally:
        await backend.close()
    with HttpProxy(fast_endpoint()) as proxy:
        proxy.inject(Failing.DENIED, times=None)
        with pytest.raises(Unavailable) as denied:
            await DynamoDBBackend(config_for(proxy.url)).open()
        shown.append(str(denied.value))
    assert not any("secret-of-the-tests" in text for text in shown)


# --- errors ------------------------------------------------------------------


def cancelled(*reasons: str) -> ErrorAnswer:
    return ErrorAnswer(400, "TransactionCanceledException", reasons=[{"Code": reason} for reason in reasons])


NOWHERE = ConnectionKey("example.org", 443, True, True, None, None, None)
ASKED = aiohttp.RequestInfo(URL("http://me:secret@proxy"), "CONNECT", CIMultiDictProxy(CIMultiDict()))

ERRORS: list[tuple[Exception, Kind, type[Exception]]] = [
    *((ErrorAnswer(400, code), failure.kind, failure.error) for code, failure in BY_CODE.items()),
    (ErrorAnswer(500, "NeverHeardOf"), Kind.BROKEN, Unavailable),
    (ErrorAnswer(503, "503"), Kind.BROKEN, Unavailable),
    (ErrorAnswer(429, "429"), Kind.BUSY, Unavailable),
    (ErrorAnswer(400, "NeverHeardOf"), Kind.REFUSED, Unavailable),
    (cancelled("None", "TransactionConflict"), Kind.BUSY, Unavailable),
    (cancelled("None", "ThrottlingError"), Kind.BUSY, Unavailable),
    (cancelled("None", "ProvisionedThroughputExceeded"), Kind.BUSY, Unavailable),
    (cancelled("TransactionConflict", "ValidationError"), Kind.REFUSED, Rejected),
    (cancelled("None", "ItemCollectionSizeLimitExceeded"), Kind.REFUSED, Rejected),
    (aiohttp.ConnectionTimeoutError(), Kind.BUSY, Unavailable),
    (aiohttp.ClientConnectorError(NOWHERE, OSError()), Kind.BUSY, Unavailable),
    (aiohttp.ClientConnectorCertificateError(NOWHERE, ValueError()), Kind.BUSY, Unavailable),
    (aiohttp.ClientHttpProxyError(ASKED, (), status=407), Kind.BUSY, Unavailable),
    (aiohttp.SocketTimeoutError(), Kind.BROKEN, Unavailable),
    (aiohttp.ClientPayloadError(), Kind.BROKEN, Unavailable),
    (aiohttp.ClientOSError(), Kind.BROKEN, Unavailable),
    (aiohttp.ServerDisconnectedError(), Kind.BROKEN, Unavailable),
    (ConnectionResetError(), Kind.BROKEN, Unavailable),
    (TimeoutError(), Kind.BROKEN, Unavailable),
    (sdk.NoCredentialsError(), Kind.REFUSED, Unavailable),
    (sdk.PartialCredentialsError(provider="p", cred_var="c"), Kind.REFUSED, Unavailable),
    (sdk.CredentialRetrievalError(provider="p", error_msg="e"), Kind.REFUSED, Unavailable),
    (sdk.ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRole"), Kind.REFUSED, Unavailable),
    (Garbled("e"), Kind.BROKEN, Unavailable),
    (sdk.ParamValidationError(report="r"), Kind.REFUSED, Unavailable),
]


@pytest.mark.parametrize(("error", "kind", "type_"), ERRORS, ids=lambda value: getattr(value, "name", None))
def test_errors_are_translated(error: Exception, kind: Kind, type_: type[Exception]) -> None:
    assert judge_failure(error).kind is kind
    assert type(translate(error)) is type_
    assert type(translate(error, was_sent=True)) is OutcomeUnknown
    assert condition_failed(error) is None
    assert "secret" not in str(translate(error))


def test_a_failed_condition_brings_the_item() -> None:
    item = {"pk": {"S": "s"}}
    for error in (
        ErrorAnswer(400, "ConditionalCheckFailedException", item=item),
        ErrorAnswer(
            400, "TransactionCanceledException", reasons=[{"Code": "ConditionalCheckFailed", "Item": item}, {}]
        ),
    ):
        failed = condition_failed(error)
        assert failed is not None
        assert failed.item == item
