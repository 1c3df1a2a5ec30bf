"""One instance of a function: a process that handles one event at a time, and can be frozen in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.servers.dynamodb import CREDENTIALS
from tests.servers.processes import wait_until

__all__ = ["Function"]

ROOT = Path(__file__).parents[2]


class Function:
    """``with Function(url) as function``: started, and ready for its first event."""

    def __init__(self, url: str) -> None:
        dies_with_us = ("setpriv", "--pdeathsig", "KILL") if sys.platform == "linux" else ()
        self._process = subprocess.Popen(
            [*dies_with_us, sys.executable, "-m", "tests.serverless.runtime"],
            cwd=ROOT,
            env=os.environ | CREDENTIALS | {"HOLDFAST_URL": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.init_ms = 0.0
        """How long its module took to load: imports, and opening the store."""

    def __enter__(self) -> Function:
        self.init_ms = self.answer()["init_ms"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """With SIGKILL: a function is given no time to close anything."""
        self._process.kill()
        self._process.communicate()

    def freeze(self) -> None:
        """Returns when it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the process is not stopped")

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def send(self, method: str, path: str, body: str = "", **query: str) -> None:
        """An event of a function URL."""
        event = {"requestContext": {"http": {"method": method}}, "rawPath": path, "body": body}
        if query:
            event["queryStringParameters"] = query
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """To the event that was sent first of those not answered yet."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the function has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(self, method: str, path: str, body: str = "", *, status: int, **query: str) -> Any:
        """The content of the answer."""
        self.send(method, path, body, **query)
        answer = self.answer()
        assert answer["statusCode"] == status, answer
        return json.loads(answer["body"])

    def begin(self) -> str:
        session_id: str = self.call("POST", "/", status=201)["id"]
        return session_id

    def say(self, session_id: str, text: str) -> str:
        event_id: str = self.call("POST", f"/{session_id}", text, status=201)["id"]
        return event_id

    def texts(self, session_id: str, **query: str) -> list[str]:
        return [said["text"] for said in self.call("GET", f"/{session_id}", status=200, **query)]
