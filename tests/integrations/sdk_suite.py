"""Run the MCP SDK's own tests on Holdfast's event store; say how many of how many pass.

    python tests/integrations/sdk_suite.py [pytest arguments]

Fetches the source distribution of the installed ``mcp`` and what its tests need with pip, into
``build/sdk-suite``, once. Exits with 1 if a test fails that does not fail with the SDK's own store, with
77 if pip cannot fetch them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    "tests/interaction/transports/test_hosting_resume.py",
    "tests/interaction/transports/test_client_transport_http.py",
    "tests/shared/test_streamable_http.py",
]
CANNOT_FETCH = 77
NEEDED = ["blockbuster", "dirty-equals", "inline-snapshot", "logfire", "opentelemetry-sdk"]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def fetch(version: str) -> tuple[Path, Path]:
    """The unpacked source, and a folder with what its tests import."""
    folder = ROOT / "build" / "sdk-suite" / version
    source, needed = folder / f"mcp-{version}", folder / "needed"
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        pip("download", "--no-deps", "--no-binary", "mcp", "--dest", str(folder), f"mcp=={version}")
        with tarfile.open(folder / f"mcp-{version}.tar.gz") as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:  # Python before 3.11.4
                archive.extractall(folder)
    if not needed.exists():
        pip("install", "--target", str(needed), *NEEDED)
    return source, needed


def run(source: Path, needed: Path, arguments: list[str], *, ours: bool) -> dict[str, str]:
    """Each test's outcome: "passed", "failed" or "skipped"."""
    report = source.parent / f"report-{'ours' if ours else 'theirs'}.xml"
    report.unlink(missing_ok=True)
    plugin = ["-p", "tests_integrations_sdk_plugin"] if ours else []
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-o", "addopts=", "-o", "log_cli=false"]
    command += ["-p", "no:cacheprovider", f"--junit-xml={report}", *plugin, *TESTS, *arguments]
    paths = [str(needed), str(source.parent), str(ROOT), str(source)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    link = source.parent / "tests_integrations_sdk_plugin.py"
    link.write_bytes((ROOT / "tests" / "integrations" / "sdk_plugin.py").read_bytes())
    finished = subprocess.run(
        command, cwd=source, env=env, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if not report.exists():
        sys.stdout.buffer.write(finished.stdout)
        sys.exit("pytest did not run")
    if ours and finished.returncode:
        sys.stdout.buffer.write(finished.stdout[-20_000:])
    return outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = case.find("failure") is not None or case.find("error") is not None
        found[name] = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
    return found


def main(arguments: list[str]) -> int:
    if find_spec("pytest_asyncio") is not None:
        sys.exit("the SDK's tests must not run with pytest-asyncio installed")
    version = metadata.version("mcp")
    try:
        source, needed = fetch(version)
    except subprocess.CalledProcessError:
        print("pip cannot fetch the SDK's tests, or what they need")
        return CANNOT_FETCH
    ours = run(source, needed, arguments, ours=True)
    failed = sorted(name for name, outcome in ours.items() if outcome == "failed")
    if failed:
        theirs = run(source, needed, arguments, ours=False)
        for name in failed:
            also = " (also with the SDK's own store, here)" if theirs.get(name) == "failed" else ""
            print(f"FAILED {name}{also}")
        failed = [name for name in failed if theirs.get(name) != "failed"]
    passed = sum(outcome == "passed" for outcome in ours.values())
    print(f"mcp {version}: {passed} of {len(ours)} of the SDK's tests pass on Holdfast's event store")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
