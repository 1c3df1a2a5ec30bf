"""``background=False``: when a call returns, all that it entails is done. The loop stands still until the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from holdfast import Config, Session
from holdfast.backends.dynamodb import DynamoDBBackend
from holdfast.config import JanitorConfig, RetentionConfig
from holdfast.supervisor.supervisor import Supervisor
from tests.servers.dynamodb import config_for, fast_endpoint
from tests.servers.http_proxy import HttpProxy

LARGE = "x" * 3_000
"""More than the head takes: it has an item of its own."""

CALLS: dict[str, Callable[[Supervisor, Session], Awaitable[object]]] = {
    "get": lambda _, session: session.get("k"),
    "cached get": lambda _, session: session.get("k", cached=True),
    "state": lambda _, session: session.state(),
    "events": lambda _, session: session.events(),
    "last events": lambda _, session: session.last_events(1),
    "info": lambda _, session: session.info(),
    "find": lambda store, session: store.require(session.id),
    "list": lambda store, _: store.list(),
    "count": lambda store, _: store.count(),
    "touch": lambda _, session: session.touch(),
    "set": lambda _, session: session.set("k", LARGE),
    "update": lambda _, session: session.update("n", lambda number: number + 1, 0),
    "remove": lambda _, session: session.remove("k"),
    "append": lambda _, session: session.append("text"),
    "append many": lambda _, session: session.append_many([LARGE] * 20),
    "drop": lambda _, session: session.append_many(range(50)),
    "set many": lambda _, session: session.set_many(dict.fromkeys("abc", LARGE)),
    "clear": lambda _, session: session.clear(),
    "close": lambda _, session: session.close(),
    "trim": lambda store, _: store.trim(),
    "expire": lambda store, _: store.expire(),
    "create": lambda store, _: store.create("another"),
    "delete": lambda _, session: session.delete(),
}


def test_nothing_is_sent_after_the_answer() -> None:
    # Were there background workers, they would be quick.
    config = Config(
        background=False,
        janitor=JanitorConfig(touch_interval_s=0.02, interval_s=0.02),
        retention=RetentionConfig(max_events=30, interval_s=0.02),
    )
    with HttpProxy(fast_endpoint()) as proxy, asyncio.Runner() as runner:
        store = Supervisor(DynamoDBBackend(config_for(proxy.url)), config)
        runner.run(store.__aenter__())
        session = runner.run(store.create())
        for name, call in CALLS.items():
            runner.run(call(store, session))
            sent = proxy.actions.total()
            assert store.statistics().registry.dirty_bytes == 0, name
            runner.run(asyncio.sleep(0.05))
            assert proxy.actions.total() == sent, name
        assert runner.run(store.close()).complete
