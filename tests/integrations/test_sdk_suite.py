"""The SDK's own tests, on Holdfast's event store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.sdk_suite import CANNOT_FETCH


def test_the_sdks_own_tests_pass() -> None:
    script = Path(__file__).with_name("sdk_suite.py")
    finished = subprocess.run(
        [sys.executable, str(script)], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if finished.returncode == CANNOT_FETCH:
        pytest.skip("pip cannot fetch the SDK's tests")
    assert finished.returncode == 0, finished.stdout
    assert " of the SDK's tests pass" in finished.stdout.splitlines()[-1]
