"""The least privilege: exactly what the documentation grants is enough, and nothing of it can be spared."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import holdfast
from holdfast.backends.base import EventQuery, SessionFilter, TrimPolicy
from holdfast.backends.postgres import PostgresBackend, schema_sql
from holdfast.backends.postgres.names import Names
from holdfast.backends.postgres.privileges import FUNCTION_NAMES, TABLE_PRIVILEGES, grants
from holdfast.errors import SchemaError
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head
from tests.backends.postgres.support import opened, sql
from tests.servers.postgres import PASSWORD, new_schema, shared_url

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[3] / "docs/postgresql.md").read_text()
SECOND = 1_000_000


class Role(NamedTuple):
    name: str
    schema: str

    @property
    def dsn(self) -> str:
        return shared_url().replace("holdfast:", f"{self.name}:", 1)


@asynccontextmanager
async def role_with(statements: Callable[[str, str], str]) -> AsyncIterator[Role]:
    """A role that exists for the test, after ``statements(schema, role)``; functions are for nobody by default."""
    role = Role(f"role_{secrets.token_hex(6)}", new_schema())
    await sql(
        shared_url(),
        f"CREATE ROLE {role.name} LOGIN PASSWORD '{PASSWORD}';"
        + schema_sql(role.schema)
        + f'REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA "{role.schema}" FROM PUBLIC;'
        + statements(role.schema, role.name),
        fetch=False,
    )
    try:
        yield role
    finally:
        await sql(shared_url(), f"DROP OWNED BY {role.name}; DROP ROLE {role.name}", fetch=False)


def documented(schema: str, role: str) -> str:
    """The page's SQL, for this role; functions are everybody's, as the page says."""
    (block,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    block = block.replace('"holdfast"', f'"{schema}"').replace('"app"', f'"{role}"')
    return f'{block} GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA "{schema}" TO PUBLIC'


async def everything(backend: PostgresBackend, clock: ManualClock) -> None:
    """Each statement of the backend, with something to do."""
    lane = Direct(backend, clock)
    now = clock.now_us()
    head = await lane.create("s", ttl_us=3_600 * SECOND)
    await lane.one(blind(head, sets={"a": (b"1", 1)}, events=[new_event(str(number)) for number in range(5)]))
    await lane.one(blind(head, sets={"a": (b"2", 1)}, removes={"b"}, floor_seq=2))
    await lane.one(blind(head, cleared=True, events=[new_event("x" * 50)]))
    await lane.one(blind(head, events=[new_event("alone")]))
    await backend.resolve(lane.last_marker)
    await backend.trim([("s", head.incarnation)], TrimPolicy(max_bytes=60), 100)
    await backend.trim(None, TrimPolicy(), 100)
    await lane.state("s")
    await backend.read_events(EventQuery("s", head.incarnation))
    await backend.list_sessions(SessionFilter(now), 0, 10)
    await backend.count_sessions(SessionFilter(now))
    await lane.commit(blind(head, delete=True), creation(new_head("t", now, ttl_us=1)))
    await lane.one(creation(new_head("u", now, ttl_us=1), events=[new_event(str(number)) for number in range(5_001)]))
    await backend.expire(now + SECOND, 10)
    await backend.describe()
    await backend.forget_markers(None, now)


async def test_documented_grants_are_enough() -> None:
    """A fresh role and a session, through the public API."""
    async with role_with(documented) as role:
        async with holdfast.open(f"{role.dsn}?schema={role.schema}&migrate=false") as store:
            session = await store.create("s", ttl_s=60)
            await session.set("a", 1)
            assert await session.update("a", lambda value: value + 1) == 2
            await session.append("x")
            assert [event.data async for event in session.replay()] == ["x"]
            assert await store.count() == 1
            await store.expire()
            await store.trim()
            assert await store.delete("s")


async def test_documented_grants_do_for_every_statement(clock: ManualClock) -> None:
    async with role_with(documented) as role, opened(role.dsn, role.schema) as make:
        await everything(await make(migrate=False), clock)


def test_documented_grants_are_those_of_schema_sql() -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    stated = [line for line in schema_sql(role="app").splitlines() if line.startswith("GRANT")]
    assert block.splitlines() == [line for line in stated if " ON FUNCTION " not in line]


def each_grant() -> list[str]:
    tables = [
        f'{privilege} ON "{{schema}}"."{table}"'
        for table, privileges in TABLE_PRIVILEGES.items()
        for privilege in privileges.split(", ")
    ]
    functions = [f'EXECUTE ON FUNCTION "{{schema}}"."{function}"' for function in FUNCTION_NAMES]
    return ['USAGE ON SCHEMA "{schema}"', *tables, *functions]


@pytest.mark.parametrize("anyio_backend", [pytest.param("asyncio", id="asyncio")])
@pytest.mark.parametrize(
    "template", each_grant(), ids=lambda template: template.replace('"', "").replace("{schema}.", "")
)
async def test_missing_grant(template: str, clock: ManualClock) -> None:
    """Each is named at open if it is missing; and without it something fails in the end."""

    def granted(schema: str, role: str) -> str:
        return ";".join(grants(Names(schema, ""), role))

    async with role_with(granted) as role, opened(role.dsn, role.schema) as make:
        backend = await make(migrate=False)
        grant = template.format(schema=role.schema)
        await sql(shared_url(), f"REVOKE {grant} FROM {role.name}", fetch=False)
        for migrate in (False, True):
            with pytest.raises(SchemaError) as caught:
                await make(migrate=migrate)
            assert f"lacks privileges: {grant};" in str(caught.value)
        if "schema_version" not in grant:
            with pytest.raises(SchemaError, match="42501"):
                await everything(backend, clock)


async def test_all_that_is_missing_is_said_at_once() -> None:
    async with role_with(lambda _schema, _role: "") as role, opened(role.dsn, role.schema) as make:
        with pytest.raises(SchemaError) as caught:
            await make(migrate=False)
        for template in each_grant():
            assert template.format(schema=role.schema) in str(caught.value)


async def test_doctor_names_what_is_missing() -> None:
    async with role_with(documented) as role:
        await sql(shared_url(), f'REVOKE DELETE ON "{role.schema}".state FROM {role.name}', fetch=False)
        url = f"{role.dsn}?schema={role.schema}&migrate=false"
        ran = subprocess.run(
            [sys.executable, "-m", "holdfast.cli", "doctor", url, "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 1, ran.stderr
        assert f'DELETE ON \\"{role.schema}\\".\\"state\\"' in ran.stdout
