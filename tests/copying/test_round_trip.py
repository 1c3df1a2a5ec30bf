"""From SQLite to a real server and back: nothing is lost on either way."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.backends.base import Backend
from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.config import WriterConfig
from holdfast.copying import Copier
from holdfast.errors import ConfigError
from holdfast.testing import ManualClock
from tests.copying.conftest import SMALL, Make, content, cut_short, fill, fill_many, maker, opened
from tests.servers.postgres import new_schema, shared_url

pytestmark = pytest.mark.anyio


@pytest.fixture
def make_server() -> Make:
    schema = new_schema()
    return lambda: PostgresBackend(PostgresConfig(dsn=shared_url(), schema=schema))


@pytest.mark.parametrize("config", [WriterConfig(), SMALL], ids=["usual", "small"])
async def test_postgres_and_back(make_server: Make, tmp_path: Path, clock: ManualClock, config: WriterConfig) -> None:
    make_first, make_second = maker("sqlite", tmp_path / "first.db"), maker("sqlite", tmp_path / "second.db")
    await fill(make_first, clock)
    await fill_many(make_first, clock)
    async with opened(make_first, make_server, make_second) as [first, server, second]:
        await stop_and_go_on(first, server, clock, config)
        await stop_and_go_on(server, second, clock, config)
        assert await content(server, clock) == await content(first, clock)
        assert await content(second, clock) == await content(first, clock)


async def stop_and_go_on(source: Backend, target: Backend, clock: ManualClock, config: WriterConfig) -> None:
    await cut_short(source, target, clock, commits=30 if config is SMALL else 1, config=config)
    report = await Copier(source, target, config, clock=clock).run()
    assert (report.problems, report.verified) == ({}, 30)


async def test_one_schema_by_two_connections_is_the_same_store(make_server: Make, clock: ManualClock) -> None:
    async with opened(make_server, make_server) as [one, other]:
        with pytest.raises(ConfigError, match="the same store"):
            await Copier(one, other, clock=clock).run()
