"""One server process on a database: opens the store when it is told to, writes, and later reads what all have written.

``python -m tests.backends.postgres.instance URL NUMBER``; it goes one step on for each line that it gets.
"""

from __future__ import annotations

import asyncio
import sys

import structlog

import holdfast


async def work(url: str, number: str) -> None:
    async with holdfast.open(url) as store:
        session = await store.create(f"instance-{number}")
        await session.append({"from": number})
        step("written")
        ids = [info.id async for info in store.scan()]
        for session_id in ids:
            (event,) = await (await store.require(session_id)).events()
            assert event.data == {"from": session_id.removeprefix("instance-")}
        step(f"read {len(ids)}")


def step(done: str) -> None:
    """Tell of it, and wait for the others."""
    print(done, flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody is there any more")


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    step("ready")
    asyncio.run(work(*sys.argv[1:]))
