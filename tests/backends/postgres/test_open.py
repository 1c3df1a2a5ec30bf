"""Opening PostgreSQL: settings, poolers, migration, privileges, what is told and what is not."""

from __future__ import annotations

import ssl
from typing import Any

import anyio
import asyncpg
import msgspec
import pytest

from holdfast.backends.base import LoadRequest
from holdfast.backends.postgres import PostgresBackend, PostgresConfig, schema_sql
from holdfast.backends.postgres import schema as schema_module
from holdfast.backends.postgres.driver import connect
from holdfast.backends.postgres.errors import translate
from holdfast.backends.postgres.names import Names
from holdfast.backends.postgres.privileges import FUNCTION_NAMES
from holdfast.backends.urls import create_backend
from holdfast.errors import ConfigError, HoldfastError, OutcomeUnknown, Rejected, SchemaError, StoreClosed, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind
from tests.backends.postgres.support import MakeBackend, opened, sql
from tests.servers.postgres import PASSWORD, SAFE, own_server, shared_url
from tests.servers.processes import free_port

pytestmark = pytest.mark.anyio


# --- settings ------------------------------------------------------------------


def test_url_is_the_drivers_and_ours() -> None:
    backend = create_backend(
        "postgresql://u:secret@db:1/app?sslmode=require&application_name=web&schema=mine&pool_max=3&migrate=false"
    )
    assert isinstance(backend, PostgresBackend)
    config = backend._config
    assert config.dsn == "postgresql://u:secret@db:1/app?sslmode=require&application_name=web"
    assert (config.schema, config.pool_max, config.migrate) == ("mine", 3, False)
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("schema=a%22b", "schema"),
        ("schema=pg_mine", "schema"),
        ("schema=A", "schema"),
        (f"table_prefix={'p' * 31}", "table_prefix"),
        ("table_prefix=a.b", "table_prefix"),
        ("pool_max=0", "pool_max"),
        ("pool_min=11", "pool_min"),
        ("lanes=0", "lanes"),
        ("statement_timeout_s=0", "statement_timeout_s"),
        ("pool_size=3", "pool_size"),
    ],
)
def test_wrong_settings_are_named(query: str, field: str) -> None:
    """C54: names that go into statements are checked before."""
    with pytest.raises(ConfigError) as caught:
        create_backend(f"postgresql://u:secret@db/app?{query}")
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("problem", ["nobody listens", "wrong password", "wrong database", "no TLS"])
async def test_what_cannot_be_opened(schema: str, problem: str) -> None:
    """C53: a clear error at once, nothing left behind, no secret told."""
    url = shared_url()
    dsn = {
        "nobody listens": f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/postgres",
        "wrong password": url.replace(PASSWORD, "wrong-secret"),
        "wrong database": url.replace("/postgres", "/nothing", 2).replace("postgresql:/nothing", "postgresql:/"),
        "no TLS": f"{url}?sslmode=require",
    }[problem]
    backend = PostgresBackend(PostgresConfig(dsn=dsn, schema=schema))
    with pytest.raises(Unavailable) as caught:
        await backend.open()
    assert PASSWORD not in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(StoreClosed):
        await backend.load([LoadRequest("s")])


@pytest.mark.parametrize(
    ("url", "field"),
    [
        *((f"postgresql:///postgres?host=127.0.0.1&port={port}", "port") for port in ("x", "1,", "-1")),
        *((f"postgresql://u:{PASSWORD}@{host}/postgres", "host") for host in ("a..b", "a" * 64, "a%00b", "a,b..c:1")),
        ("postgresql:///postgres?host=a..b", "host"),
    ],
)
async def test_wrong_address_is_named(url: str, field: str) -> None:
    """The driver's errors would not say what is wrong."""
    with pytest.raises(ConfigError) as caught:
        await create_backend(url).open()
    assert caught.value.field == field
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "%2Fvar%2Frun%2F" + "a" * 70 + "/postgres",
        "[::1]:1/postgres",
        "/postgres?host=127.0.0.1,127.0.0.1&port=1,2",
        "127.0.0.1:1,[::1]:2,127.0.0.1/postgres",
    ],
)
async def test_unusual_addresses_are_left_to_the_driver(place: str) -> None:
    with pytest.raises(Unavailable):
        await create_backend(f"postgresql://u:{PASSWORD}@{place}").open()


async def test_the_first_of_several_hosts_that_answers(schema: str) -> None:
    """As `libpq` takes them: each with its own port."""
    before, _, place = shared_url().rpartition("@")
    async with opened(f"{before}@127.0.0.1:1,{place}", schema) as make:
        assert (await (await make()).describe())["backend"] == "postgres"


async def test_pooler_is_found_out(schema: str) -> None:
    """Behind PgBouncer: no hints, and no statement that outlives its transaction."""
    async with opened(shared_url(pooled=True), schema) as make:
        assert not (await make()).capabilities.watches
        assert not (await make(pgbouncer=True)).capabilities.watches
    async with opened(shared_url(), schema) as make:
        assert (await make()).capabilities.watches


async def test_pooler_under_load(schema: str, clock: ManualClock) -> None:
    """More callers than connections to the server, each statement on another one."""
    async with opened(shared_url(pooled=True), schema) as make:
        backend = await make(pool_max=20)
        direct = Direct(backend, clock)
        heads = [await direct.create(f"s{number}") for number in range(20)]

        async def work(number: int) -> None:
            lane = Direct(backend, clock, f"lane{number}")
            for _ in range(10):
                await lane.append(heads[number], "x")
                assert await backend.load([LoadRequest(heads[number].id)]) != [None]

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(work, number)
        for head in heads:
            assert [event.seq for event in await direct.events(head)] == list(range(1, 11))


async def test_durability_is_what_the_server_can_do(schema: str) -> None:
    """P1: fsync off promises no more than that a killed client loses nothing."""
    async with opened(shared_url(), schema) as make:
        backend = await make()
        assert backend.capabilities.durability is Durability.PROCESS
        assert (await backend.describe())["fsync"] is False
    with own_server(SAFE) as server:
        async with opened(server.url(), schema) as make:
            assert (await make()).capabilities.durability is Durability.DISK
        await sql(server.url(), "ALTER SYSTEM SET synchronous_standby_names = 'standby'", fetch=False)
        await sql(server.url(), "SELECT pg_reload_conf()")
        await anyio.sleep(0.3)
        async with opened(server.url(), schema) as make:
            assert (await make()).capabilities.durability is Durability.REPLICATED


async def test_describe_tells_no_secret(make_backend: MakeBackend) -> None:
    """C53."""
    backend = await make_backend()
    facts = await backend.describe()
    assert facts["schema_version"] == len(schema_module.STEPS)
    told = msgspec.json.encode(facts).decode() + repr(backend._config)
    assert PASSWORD not in told


# --- the schema ------------------------------------------------------------------


async def test_ten_instances_start_at_once(make_backend: MakeBackend, clock: ManualClock, schema: str) -> None:
    """C52: one of them creates the tables, the others wait for it."""
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(make_backend)
    rows = await sql(shared_url(), f'SELECT version FROM "{schema}".schema_version')
    assert [row[0] for row in rows] == [len(schema_module.STEPS)]


async def test_prefixes_keep_stores_apart(make_backend: MakeBackend, clock: ManualClock) -> None:
    first = Direct(await make_backend(table_prefix="a_"), clock)
    second = Direct(await make_backend(table_prefix="b_"), clock)
    await first.create("s")
    assert not await second.exists("s")


async def test_prefixes_in_a_new_schema_start_at_once(make_backend: MakeBackend, schema: str) -> None:
    """C52: the schema is created by one of them, whichever tables it is for."""
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(lambda number=number: make_backend(table_prefix=f"p{number}_"))
    rows = await sql(
        shared_url(),
        "SELECT count(*) FROM pg_class WHERE relname LIKE 'p%schema_version'"
        f" AND relnamespace = '{schema}'::regnamespace",
    )
    assert rows[0][0] == 6


async def test_older_schema_is_migrated_and_newer_refused(
    make_backend: MakeBackend, clock: ManualClock, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C52: what is there stays; a version that we do not know is not touched."""
    old = await make_backend()
    await Direct(old, clock).create("kept")
    config = PostgresConfig(dsn=shared_url(), schema=schema)

    async def migrate(steps: Any) -> None:
        connection = await connect(config, pooled=False)
        try:
            await schema_module.prepare(connection, Names(schema, ""), migrate=True, steps=steps)
        finally:
            await connection.close()

    longer = (*schema_module.STEPS, ("ALTER TABLE @sessions ADD COLUMN colour text",))
    await old._bridge.call(migrate, longer)
    rows = await sql(shared_url(), f'SELECT id, colour FROM "{schema}".sessions')
    assert [tuple(row) for row in rows] == [("kept", None)]
    with pytest.raises(SchemaError) as caught:
        await make_backend()
    assert (caught.value.found, caught.value.supported) == (len(longer), len(longer) - 1)


async def test_foreign_tables_are_left_alone(make_backend: MakeBackend, schema: str) -> None:
    await sql(shared_url(), f'CREATE SCHEMA "{schema}"; CREATE TABLE "{schema}".sessions (id int)', fetch=False)
    with pytest.raises(SchemaError, match="42P07"):
        await make_backend()
    rows = await sql(shared_url(), f"SELECT count(*) FROM pg_class WHERE relnamespace = '{schema}'::regnamespace")
    assert rows[0][0] == 1


@pytest.mark.parametrize(
    "ddl",
    [
        "TABLE {} (version int); INSERT INTO {} VALUES (1)",
        "TABLE {} (version text); INSERT INTO {} VALUES ('1.0.2')",
        "TABLE {} (version int); INSERT INTO {} VALUES (1), (1)",
        "TABLE {} (version int)",
        "TABLE {} (installed_rank int)",
        "VIEW {} AS SELECT 1 AS version",
    ],
)
async def test_version_table_of_others_is_recognised(make_backend: MakeBackend, schema: str, ddl: str) -> None:
    """Migration tools use that name, too."""
    table = f'"{schema}".schema_version'
    await sql(shared_url(), f'CREATE SCHEMA "{schema}"; CREATE {ddl.replace("{}", table)}', fetch=False)
    for migrate in (True, False):
        with pytest.raises(SchemaError):
            await make_backend(migrate=migrate)


async def test_damaged_schema_is_named(make_backend: MakeBackend, schema: str) -> None:
    await make_backend()
    await sql(shared_url(), f'DROP TABLE "{schema}".state; DROP FUNCTION "{schema}".trim', fetch=False)
    with pytest.raises(SchemaError, match=r"it lacks state, trim\(\)"):
        await make_backend()


async def test_role_that_may_not_create(make_backend: MakeBackend, clock: ManualClock, schema: str) -> None:
    """The least privilege: an administrator runs `schema_sql`, the instances only verify."""
    role = f"{schema}_role"
    await sql(
        shared_url(),
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; REVOKE CREATE ON DATABASE postgres FROM PUBLIC",
        fetch=False,
    )
    dsn = shared_url().replace("holdfast:", f"{role}:")
    for migrate, words in ((True, "42501"), (False, "schema_sql")):
        with pytest.raises(SchemaError, match=words):
            await make_backend(dsn=dsn, migrate=migrate)
    await sql(shared_url(), schema_sql(schema, role=role), fetch=False)
    for migrate in (False, True):
        backend = await make_backend(dsn=dsn, migrate=migrate)
        direct = Direct(backend, clock, f"lane{migrate}")
        head = await direct.append(await direct.create(f"s{migrate}", ttl_us=5), "a", "b", max_events=1)
        await direct.one(blind(head, delete=True))
        assert await backend.expire(clock.now_us(), 10) == []
        await backend.describe()


def test_role_is_named_as_it_is() -> None:
    grants = [line for line in schema_sql("mine", "p_", role='svc@corp"x').splitlines() if line.startswith("GRANT")]
    assert all(line.endswith('TO "svc@corp""x";') for line in grants)
    assert 'GRANT SELECT ON "mine"."p_schema_version" TO "svc@corp""x";' in grants
    assert len(grants) == 1 + len(schema_module.TABLES) + len(FUNCTION_NAMES)


# --- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind", "sent"),
    [
        ("08006", Unavailable, OutcomeUnknown),
        ("22003", Rejected, Rejected),
        ("23505", Rejected, Rejected),
        ("25006", Unavailable, Unavailable),
        ("28P01", Unavailable, Unavailable),
        ("3D000", Unavailable, Unavailable),
        ("3F000", SchemaError, SchemaError),
        ("40001", Unavailable, Unavailable),
        ("40003", OutcomeUnknown, OutcomeUnknown),
        ("40P01", Unavailable, Unavailable),
        ("42501", SchemaError, SchemaError),
        ("42883", SchemaError, SchemaError),
        ("42P01", SchemaError, SchemaError),
        ("53100", Unavailable, Unavailable),
        ("53300", Unavailable, Unavailable),
        ("54000", Rejected, Rejected),
        ("55000", Unavailable, Unavailable),
        ("55P03", Unavailable, Unavailable),
        ("57014", Unavailable, Unavailable),
        ("57P01", Unavailable, OutcomeUnknown),
        ("57P03", Unavailable, OutcomeUnknown),
        ("58030", Unavailable, Unavailable),
        ("XX000", Unavailable, Unavailable),
        ("XX001", SchemaError, SchemaError),
    ],
)
def test_errors_of_the_server(state: str, kind: type[HoldfastError], sent: type[HoldfastError]) -> None:
    severity = "FATAL" if state.startswith("57P") else "ERROR"
    error = asyncpg.PostgresError.new({"C": state, "M": "said", "D": "detail", "S": severity, "V": severity})
    assert type(translate(error)) is kind
    translated = translate(error, sent=True)
    assert type(translated) is sent
    assert state in str(translated)
    assert "detail" not in str(translated)


@pytest.mark.parametrize("word", ["FATAL", "SCHWERWIEGEND", "致命错误"])
def test_lost_commits_are_known_in_every_language(word: str) -> None:
    """``lc_messages`` translates the severity, but not its other copy."""
    error = asyncpg.PostgresError.new({"C": "57P01", "M": "said", "S": word, "V": "FATAL"})
    assert type(translate(error, sent=True)) is OutcomeUnknown
    of_pooler = asyncpg.PostgresError.new({"C": "57P01", "M": "said", "S": "FATAL"})
    assert type(translate(of_pooler, sent=True)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("error", "kind", "sent"),
    [
        (OSError("lost"), Unavailable, OutcomeUnknown),
        (ssl.SSLError("lost"), Unavailable, OutcomeUnknown),
        (TimeoutError(), Unavailable, OutcomeUnknown),
        (asyncpg.InterfaceError("connection is closed"), Unavailable, OutcomeUnknown),
        (asyncpg.ConnectionDoesNotExistError("lost"), Unavailable, OutcomeUnknown),
        (asyncpg.InternalClientError("lost"), Unavailable, OutcomeUnknown),
        (asyncpg.DataError("too large"), Rejected, Rejected),
        (OverflowError("too large"), Rejected, Rejected),
        (asyncpg.ClientConfigurationError("host"), ConfigError, ConfigError),
    ],
)
def test_errors_of_the_driver(error: Exception, kind: type[HoldfastError], sent: type[HoldfastError]) -> None:
    assert type(translate(error)) is kind
    assert type(translate(error, sent=True)) is sent
