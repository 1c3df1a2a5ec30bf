"""Requests as they leave, and answers as they come: compared with the SDK, which the backend sends without.

A server of the tests' own writes down what it is sent, and answers as it is told.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import ssl
import string
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from aiobotocore.session import AioSession
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError

from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.sender import Sender
from holdfast.backends.dynamodb.signing import Signer
from holdfast.backends.dynamodb.wire import ErrorAnswer, Garbled, decode_answer, decode_error, encode
from holdfast.errors import ConfigError, OutcomeUnknown, Rejected, StoreClosed, Unavailable
from tests.servers.processes import not_here

pytestmark = pytest.mark.anyio

SECRET = "secret-of-the-tests"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None but those of the test."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


# --- signatures ---------------------------------------------------------------


def signed_by_the_sdk(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    region: str,
    headers: dict[str, str],
    body: bytes,
    now: datetime,
    **key: Any,
) -> dict[str, str]:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.replace(tzinfo=None))
    named = {name: headers[name] for name in ("Content-Type", "X-Amz-Target")}
    request = AWSRequest("POST", url, headers=named, data=body)
    SigV4Auth(ReadOnlyCredentials(**key), "dynamodb", region).add_auth(request)
    return dict(request.headers.items())


@pytest.mark.parametrize("seed", range(40))
def test_signatures_are_those_of_the_sdk(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    letters = string.ascii_letters + string.digits + "/+="
    url = chance.choice([
        "https://dynamodb.eu-central-1.amazonaws.com", "https://dynamodb.eu-central-1.amazonaws.com/",
        "http://127.0.0.1:8000", "http://LOCALHOST:80", "https://example.org:443", "https://example.org:8443/a/b%20c",
        "http://[::1]:8000", "https://example.org/~x/ü",
    ])  # fmt: skip
    region = chance.choice(["eu-central-1", "us-gov-west-1", "cn-north-1"])
    signer = Signer(url, region)
    for _ in range(5):  # the signing key of another day, or of other credentials, is another
        key = {
            "access_key": "".join(chance.choices(letters, k=20)),
            "secret_key": "".join(chance.choices(letters, k=40)),
            "token": chance.choice([None, "".join(chance.choices(letters, k=300))]),
        }
        for _ in range(3):
            now = datetime.fromtimestamp(chance.randrange(10**9, 2 * 10**9), timezone.utc)
            body = chance.randbytes(chance.randrange(3_000))
            made = signer.headers("PutItem", body, ReadOnlyCredentials(**key), now)
            assert made.pop("Host") == made_host(url)
            assert made == signed_by_the_sdk(monkeypatch, signer.url, region, made, body, now, **key)


def made_host(url: str) -> str:
    return SigV4Auth(None, "", "").headers_to_sign(AWSRequest("POST", url))["host"]


# --- where to -----------------------------------------------------------------

PLACES: dict[str, dict[str, str]] = {
    "a region": {"AWS_DEFAULT_REGION": "eu-central-1"},
    "China": {"AWS_DEFAULT_REGION": "cn-north-1"},
    "GovCloud": {"AWS_DEFAULT_REGION": "us-gov-west-1"},
    "FIPS": {"AWS_DEFAULT_REGION": "us-east-1", "AWS_USE_FIPS_ENDPOINT": "true"},
    "IPv6": {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    "an endpoint of the environment": {
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "https://example.org:8443/a",
    },
    "an endpoint of the service": {
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:8000",
    },
}


@pytest.mark.parametrize("place", PLACES)
async def test_requests_go_where_the_sdk_sends_them(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    for name, value in PLACES[place].items():
        monkeypatch.setenv(name, value)
    sent: list[Any] = []

    def stop(request: Any, **_: Any) -> None:
        sent.append(request)
        raise KeyError("sent")

    async with AioSession().create_client("dynamodb") as client:
        client.meta.events.register("before-send.dynamodb", stop)
        with pytest.raises(KeyError):
            await client.get_item(TableName="table", Key={"pk": {"S": "s"}})
    sender = Sender(DynamoDBConfig(table="table"))
    await sender.open()
    try:
        assert sender._signer is not None
        assert sender._signer.url == sent[0].url
        ours = sender._signer.headers("GetItem", b"", ReadOnlyCredentials("key", SECRET, None))
    finally:
        await sender.close()
    theirs = sent[0].headers["Authorization"].decode()
    scope = f"/{sender.region}/dynamodb/aws4_request, "
    assert scope in theirs
    assert scope in ours["Authorization"]


async def test_an_endpoint_of_the_account_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK prefers it where it knows the account, and needs not; where it must, opening says that it cannot."""
    monkeypatch.setenv("AWS_ACCOUNT_ID", "123456789012")
    sender = Sender(DynamoDBConfig(table="table", region="eu-west-1"))
    await sender.open()
    assert sender.endpoint == "dynamodb.eu-west-1.amazonaws.com"
    await sender.close()
    monkeypatch.setenv("AWS_ACCOUNT_ID_ENDPOINT_MODE", "required")
    with pytest.raises(ConfigError, match="account") as refused:
        await sender.open()
    assert refused.value.field == "endpoint"


# --- what is sent -------------------------------------------------------------


class Server:
    """Answers with ``answers``, in turn; the last one again and again."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        """Target as in the request's first line, headers in small letters, body."""
        self.answers: list[tuple[int, bytes, dict[str, str]]] = [(200, b"{}", {})]

    async def handle(self, request: web.BaseRequest) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request._message.path, headers, await request.content.read()))
        status, body, more = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, body=body, headers=more)

    async def start(self) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(self.handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    runner = await server.start()
    yield server
    await runner.cleanup()


@pytest.fixture
async def opened() -> AsyncIterator[Callable[[str], Any]]:
    """Makes tables at an endpoint, and closes them."""
    tables: list[Table] = []

    async def make(endpoint: str, **settings: Any) -> Table:
        table = Table(DynamoDBConfig(table="table", region="eu-west-1", endpoint=endpoint, **settings))
        tables.append(table)
        await table.open()
        return table

    yield make
    for table in tables:
        await table.close()


async def test_a_request_is_what_dynamodb_reads(server: Server, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-an-hour")
    table = await opened(server.url)
    params = {"TableName": "table", "Item": {"pk": {"S": "ü\x00"}, "n": {"N": "1"}, "d": {"B": b"\x00\xff>"}}}
    await table.call("PutItem", **params)
    [(path, headers, body)] = server.seen
    assert path == "/"
    assert headers["x-amz-target"] == "DynamoDB_20120810.PutItem"
    assert headers["content-type"] == "application/x-amz-json-1.0"
    assert headers["x-amz-security-token"] == "token-of-an-hour"
    assert headers["host"] == server.url.removeprefix("http://")
    assert headers["content-length"] == str(len(body))
    assert headers["accept-encoding"] == "identity", "what is packed would not fit its checksum"
    assert headers["user-agent"].startswith("holdfast ")
    assert "transfer-encoding" not in headers
    packed = base64.b64encode(b"\x00\xff>").decode()
    assert json.loads(body) == params | {"Item": params["Item"] | {"d": {"B": packed}}}
    assert abs((parsed(headers["x-amz-date"]) - datetime.now(timezone.utc)).total_seconds()) < 60


def parsed(date: str) -> datetime:
    return datetime.strptime(date + "+0000", "%Y%m%dT%H%M%SZ%z")


async def test_a_large_body_arrives_whole(server: Server, opened: Any) -> None:
    table = await opened(server.url)
    await table.call("PutItem", Item={"d": {"B": bytes(3 << 20)}})
    [(_, headers, body)] = server.seen
    assert json.loads(body) == {"Item": {"d": {"B": base64.b64encode(bytes(3 << 20)).decode()}}}
    assert headers["content-length"] == str(len(body))


async def test_credentials_are_renewed(
    server: Server, opened: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of a program that hands out others each time, which are about to expire."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "script.py").write_text(
        "import datetime, json, pathlib\n"
        "calls = pathlib.Path(__file__).with_name('calls')\n"
        "calls.write_text(calls.read_text() + 'x' if calls.exists() else 'x')\n"
        "soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=5)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': calls.read_text(), 'SecretAccessKey': 's',\n"
        "                  'SessionToken': 't', 'Expiration': soon.isoformat()}))\n"
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {tmp_path}/script.py\n")
    table = await opened(server.url)
    for _ in range(2):
        await table.call("GetItem")
    keys = [headers["authorization"].partition("Credential=")[2].partition("/")[0] for _, headers, _ in server.seen]
    assert len(set(keys)) == 2
    (tmp_path / "script.py").write_text("raise SystemExit('gone')")
    with pytest.raises(Unavailable, match="no usable AWS credentials"):
        await table.call("GetItem")
    assert len(server.seen) == 2
    with pytest.raises(Unavailable, match="no usable AWS credentials"):
        await opened(server.url)


async def test_without_credentials_nothing_is_sent(
    server: Server, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    table = await opened(server.url)
    with pytest.raises(Unavailable, match="no usable AWS credentials") as failed:
        await table.call("GetItem")
    assert isinstance(failed.value.__cause__, NoCredentialsError)
    assert not server.seen


async def test_a_proxy_is_used(server: Server, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (server.url.replace("://", "://me:pass@"), server.url.removeprefix("http://")):
        monkeypatch.setenv("HTTP_PROXY", name)
        table = await opened("http://dynamodb.example.invalid")
        await table.call("GetItem")
    assert [path for path, _, _ in server.seen] == ["http://dynamodb.example.invalid/"] * 2
    assert [headers["host"] for _, headers, _ in server.seen] == ["dynamodb.example.invalid"] * 2
    basic = "Basic " + base64.b64encode(b"me:pass").decode()
    assert [headers.get("proxy-authorization") for _, headers, _ in server.seen] == [basic, None]


async def test_a_proxy_that_cannot_be_is_said_to_be_that(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("socks5://me:secret@127.0.0.1:1", "http://me:secret@", "http://me:secret@[127.0.0.1"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(ConfigError, match="proxy") as refused:
            await opened("http://dynamodb.example.invalid")
        assert "secret" not in str(refused.value)
    monkeypatch.setenv("NO_PROXY", ".example.invalid")
    await opened("http://dynamodb.example.invalid")


class Answering(BaseHTTPRequestHandler):
    """Answers each request with an empty object."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """Its URL, and the certificate that it has given itself. In a thread: a loop would still be closing connections."""
    if shutil.which("openssl") is None:
        not_here("openssl makes the certificate, and is not to be had")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"https://localhost:{server.server_address[1]}", certificate
        finally:
            server.shutdown()
            thread.join()


async def test_a_server_is_believed_by_its_certificate(
    opened: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``AWS_CA_BUNDLE`` names whom to believe; without it, one that nobody knows is refused."""
    with tls_server(tmp_path) as (url, certificate):
        stranger = await opened(url)
        with pytest.raises(Unavailable, match=r"cannot be reached.*certificate"):
            await stranger.call("GetItem", attempts=1)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        table = await opened(url)
        assert await table.call("GetItem") == {}
        await table.close()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
        with pytest.raises(ConfigError, match=r"nowhere\.pem"):
            await opened(url)


async def test_a_closed_table_sends_nothing(server: Server, opened: Any) -> None:
    table = await opened(server.url)
    await table.close()
    await table.close()
    with pytest.raises(StoreClosed):
        await table.call("GetItem")
    with pytest.raises(StoreClosed):
        _ = table.endpoint


# --- answers ------------------------------------------------------------------


def named(code: str, **more: Any) -> bytes:
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", **more}).encode()


async def test_an_answer_that_does_not_fit_its_checksum_is_not_believed(server: Server, opened: Any) -> None:
    """The write may have been done, so it is sent again: its condition sees to the rest."""
    table = await opened(server.url)
    right = {"x-amz-crc32": str(crc32(b"{}"))}
    server.answers = [(200, b"{}", {"x-amz-crc32": "1"}), (200, b"{}", right)]
    await table.call("PutItem", writes=True)
    assert len(server.seen) == 2
    server.answers = [(200, b"{}", {"x-amz-crc32": "1"})]
    with pytest.raises(OutcomeUnknown, match="checksum"):
        await table.call("PutItem", writes=True, attempts=2)
    with pytest.raises(Unavailable, match="checksum"):
        await table.call("GetItem", attempts=2)
    assert len(server.seen) == 6


@pytest.mark.parametrize(
    ("status", "body", "error", "attempts"),
    [
        (200, b"<html>sign in</html>", OutcomeUnknown, 2),
        (200, b'{"Item": []}', OutcomeUnknown, 2),
        (502, b"<html>no gateway</html>", OutcomeUnknown, 2),
        (503, b"", OutcomeUnknown, 2),
        (429, b"", Unavailable, 2),
        (403, b"<html>denied</html>", Unavailable, 1),
        (413, b"", Rejected, 1),
        (400, named("ValidationException", message="m"), Rejected, 1),
        (400, named("ThrottlingException"), Unavailable, 2),
    ],
)
async def test_what_others_answer_is_known_by_its_status(
    server: Server, opened: Any, status: int, body: bytes, error: type[Exception], attempts: int
) -> None:
    table = await opened(server.url)
    server.answers = [(status, body, {})]
    with pytest.raises(error) as raised:
        await table.call("PutItem", writes=True, attempts=2)
    assert type(raised.value) is error
    assert len(server.seen) == attempts
    assert SECRET not in str(raised.value)


async def test_a_redirect_is_not_followed(server: Server, opened: Any) -> None:
    """DynamoDB sends none; whoever does is not to be shown what the table holds."""
    table = await opened(server.url)
    server.answers = [(307, b"", {"Location": f"{server.url}/elsewhere"})]
    with pytest.raises(Unavailable, match="307"):
        await table.call("PutItem", writes=True)
    assert len(server.seen) == 1


async def test_a_failed_condition_tells_what_is_there(server: Server, opened: Any) -> None:
    table = await opened(server.url)
    item = {"pk": {"S": "s"}, "d": {"B": base64.b64encode(b"\x01\x02").decode()}}
    reasons = [{"Code": "ConditionalCheckFailed", "Message": "m", "Item": item}, {"Code": "None"}]
    server.answers = [
        (400, named("ConditionalCheckFailedException", Message="m", Item=item), {}),
        (400, named("TransactionCanceledException", CancellationReasons=reasons), {}),
    ]
    for _ in range(2):
        with pytest.raises(ConditionFailed) as failed:
            await table.call("PutItem", writes=True)
        assert failed.value.item == {"pk": {"S": "s"}, "d": {"B": b"\x01\x02"}}


def test_bytes_go_there_and_back() -> None:
    item = {"pk": {"S": "\u2028"}, "n": {"N": "-1"}, "d": {"B": bytes(range(256))}}
    for answer in ({"Item": item}, {"Items": [item], "LastEvaluatedKey": item}, {"Responses": {"table": [item]}}):
        assert decode_answer(encode(answer), None) == answer


def test_attributes_of_other_kinds_are_left_out() -> None:
    """Of items that are not ours: to be refused as such, not to break the reading."""
    body = b'{"Item": {"pk": {"S": "s"}, "m": {"M": {}}, "z": {"NULL": true}}, "ConsumedCapacity": {}}'
    assert decode_answer(body, None) == {"Item": {"pk": {"S": "s"}, "m": {}, "z": {}}}


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"__type": "a.b#NoSuch", "message": "m"}', "NoSuch", "m"),
        (b'{"__type": "NoSuch", "Message": "m"}', "NoSuch", "m"),
        (b'{"__type": "NoSuch:http://internal/", "message": null}', "NoSuch", ""),
        (b"{}", "400", ""),
        (b"[]", "400", ""),
        (b"", "400", ""),
        (b"\xff", "400", ""),
    ],
)
def test_errors_are_found_by_name(body: bytes, code: str, message: str) -> None:
    error = decode_error(400, body, str(crc32(body)))
    assert isinstance(error, ErrorAnswer)
    assert (error.status, error.code, error.message) == (400, code, message)
    with pytest.raises(Garbled):
        decode_error(400, body, "1")
