"""CONFORMANCE 46: a full disk and I/O errors: a clear error, nothing half-written, recovery."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.crash.harness import ROOT, Worker, environment
from tests.crash.ledger import Ledger, create_sessions
from tests.crash.opening import sqlite_url


def _can(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_full_disk(tmp_path: Path) -> None:
    """On a tmpfs of a few megabytes, mounted in a namespace that ends with the process."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not _can("unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)):
        pytest.skip("no mount namespaces here")
    result = subprocess.run(
        ["unshare", "-m", sys.executable, "-m", "tests.crash.full_disk", str(folder)],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["acked"] > 20
    for error in found["errors"]:
        assert "Unavailable" in error
        assert "full" in error or "failing" in error
    assert "full" in found["errors"][0]
    assert found["after"] == [count + 1 for count in found["reads"]]
    assert found["faults"] == []


@pytest.mark.parametrize(
    ("calls", "error"),
    [("fsync,fdatasync", "EIO"), ("pwrite64", "ENOSPC"), ("pwrite64", "EIO")],
)
def test_failing_system_calls(tmp_path: Path, calls: str, error: str) -> None:
    """Every so often a system call fails: what was acknowledged is there, once, and writing goes on."""
    if not _can("strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "true"):
        pytest.skip("no strace, or it may not trace here")
    url = sqlite_url(tmp_path / "sessions.db")
    anyio.run(create_sessions, url)
    ledger = Ledger()
    inject = f"inject={calls}:error={error}:when=40+37"
    trace = tmp_path / "trace"
    prefix = ("strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={calls}", "-e", inject)
    worker = Worker(ledger, url, "--writer", "w", "--durability", "disk", "--seconds", "1.5", prefix=prefix)
    said = worker.wait()
    assert "(INJECTED)" in trace.read_text()
    faults = anyio.run(ledger.check, url)
    assert faults == [], said[-2000:]
    assert ledger.acknowledged > 100, said[-2000:]
