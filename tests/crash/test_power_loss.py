"""P1: ``disk`` survives the loss of power; staged by shutting an ext4 file system down in mid-write."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.crash.harness import Worker
from tests.crash.ledger import Ledger, create_sessions
from tests.crash.opening import sqlite_url

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
"""Nothing that is not on the disk by now will get there, the journal neither."""


class Disk:
    """An ext4 file system in a file. ``lose_power`` drops all that was not synced."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder = folder
        self._image = image

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.folder)], check=True, capture_output=True)

    def lose_power(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, ctypes.c_uint32(NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=False, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Skips where the machine cannot mount one."""
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or mkfs is None:
        pytest.skip("power loss needs root and mkfs.ext4")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(96 << 20)
    disk = Disk(image, folder)
    try:
        subprocess.run([mkfs, "-q", str(image)], check=True, capture_output=True)
        disk.mount()
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no loop devices here: {exc}")
    yield disk
    disk.unmount()


def _write_until_power_is_lost(disk: Disk, durability: str) -> tuple[Ledger, list[str]]:
    url = sqlite_url(disk.folder / "sessions.db")
    ledger = Ledger()
    anyio.run(create_sessions, url)
    os.sync()
    worker = Worker(ledger, url, "--writer", "w", "--durability", durability)
    try:
        worker.wait_for_lines(300)
        disk.lose_power()
    except OSError as exc:
        pytest.skip(f"this kernel cannot shut a file system down: {exc}")
    finally:
        worker.kill()
    disk.unmount()
    disk.mount()
    return ledger, anyio.run(ledger.check, url)


def test_disk_keeps_every_acknowledged_write(disk: Disk) -> None:
    ledger, faults = _write_until_power_is_lost(disk, "disk")
    assert ledger.acknowledged > 100
    assert faults == []


def test_process_level_does_not(disk: Disk) -> None:
    """The counter-check: writes that only promise to survive a kill are lost here, so losses would show."""
    _, faults = _write_until_power_is_lost(disk, "process")
    assert any("acknowledged" in fault for fault in faults)
