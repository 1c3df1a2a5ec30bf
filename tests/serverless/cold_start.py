"""``python -m tests.serverless.cold_start [rounds]``: how long a new process takes to its first answer, by the median.

Against dynoxide, which answers at once: what is measured is the client. AWS adds its network and TLS.
"""

from __future__ import annotations

import asyncio
import sys
import time
from statistics import median

from holdfast.backends.dynamodb import DynamoDBBackend
from tests.serverless.function import Function
from tests.servers.dynamodb import config_for, fast_endpoint

__all__ = ["measure", "new_table"]


def new_table(endpoint: str | None = None, **params: object) -> str:
    """The URL of a table that is there; to be reached by ``endpoint``, a proxy's perhaps."""
    config = config_for(fast_endpoint())

    async def create() -> None:
        backend = DynamoDBBackend(config)
        await backend.open()
        await backend.close()

    asyncio.run(create())
    url = f"dynamodb://{config.table}?region={config.region}&endpoint={endpoint or config.endpoint}&verify=false"
    return "&".join([url, *(f"{name}={value}" for name, value in params.items())])


def measure(rounds: int) -> dict[str, float]:
    """Milliseconds."""
    url = new_table()
    samples: dict[str, list[float]] = {}
    with Function(url) as function:
        session_id = function.begin()
    for number in range(rounds):
        begun = time.perf_counter()
        with Function(url) as function:
            times = [begun, time.perf_counter()]
            for _ in range(2):
                function.say(session_id, str(number))
                times.append(time.perf_counter())
            for name, seconds in {
                "a new process, with its store open": times[1] - times[0],
                "of that, imports and opening": function.init_ms / 1e3,
                "its first answer: find a session, append": times[2] - times[1],
                "its second answer": times[3] - times[2],
                "cold start to first answer": times[2] - times[0],
            }.items():
                samples.setdefault(name, []).append(seconds * 1e3)
    return {name: median(values) for name, values in samples.items()}


if __name__ == "__main__":
    for what, ms in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10).items():
        print(f"{what:<42} {ms:8.1f} ms")
