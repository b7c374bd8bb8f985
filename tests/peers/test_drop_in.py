"""Tests that others wrote of starting processes, with our engine under the standard modules."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from suites import run_both

# A suite that hangs ends by itself, with the name of its test: tests/helpers/run_suite.py.
pytestmark = pytest.mark.timeout(6100)

ADAPTERS = Path(__file__).parent / "adapters"
# PYFORKFD_PEERS=all runs the whole of multiprocessing's tests, which takes half an hour.
WHOLE = os.environ.get("PYFORKFD_PEERS") == "all"
OF_MULTIPROCESSING = [
    "TestResourceTracker",
    "TestStartMethod",
    "WithProcessesTestManagerRestart",
    "WithProcessesTestPool",
    "WithProcessesTestProcess",
    "WithProcessesTestSubclassingProcess",
]
# Parts of the interpreter's `test` package, and how often at least they start a child through
# us.  Children of a fork server are not started anew, only that itself is.
SUITES: dict[str, tuple[list[str], int]] = {
    "subprocess": (["test.test_subprocess"], 200),
    "asyncio": (["test.test_asyncio.test_subprocess"], 50),
    "posix_spawn": (["test.test_posix.TestPosixSpawn", "test.test_posix.TestPosixSpawnP"], 30),
    "spawn_suite": ([], 80),
    "forkserver_suite": ([], 10),
}


@pytest.mark.parametrize("name", SUITES)
def test_the_interpreters_own(name: str, tmp_path: Path) -> None:
    names, calls = SUITES[name]
    if not names:  # tests/helpers/NAME.py
        names = [name] if WHOLE else [f"{name}.{part}" for part in OF_MULTIPROCESSING]
    _, ours = run_both(
        names, adapter=ADAPTERS / "drop_in.py", tmp_path=tmp_path, timeout=3000 if WHOLE else 900
    )
    assert ours.calls is not None
    assert ours.calls >= calls


PYTEST = [
    *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=."),
    *("-p", "trio._tests.pytest_plugin", "--run-slow", "--junitxml=report.xml"),
]


def outcomes(report: Path) -> dict[str, str]:
    """Of a pytest run, as its JUnit file tells."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def test_trios_own(tmp_path: Path) -> None:
    runs = {}
    for name, plugins in {"stock": [], "ours": ["-p", "drop_in_plugin"]}.items():
        (tmp_path / name).mkdir()
        calls = {"PYTHONPATH": str(ADAPTERS), "DROP_IN_CALLS": str(tmp_path / "calls")}
        with (tmp_path / name / "output").open("w") as output:
            runs[name] = subprocess.Popen(
                [*PYTEST, *plugins, "--pyargs", "trio._tests.test_subprocess"],
                cwd=tmp_path / name,
                env={**os.environ, **calls},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
    for run in runs.values():
        run.wait(timeout=600)
    stock, ours = (outcomes(tmp_path / name / "report.xml") for name in runs)
    assert "passed" in stock.values()
    lost = {n: ours.get(n) for n, outcome in stock.items() if ours.get(n) != outcome == "passed"}
    assert not lost, f"{lost}\n{(tmp_path / 'ours' / 'output').read_text()}"
    assert int((tmp_path / "calls").read_text()) >= 40


ANYIO = """
import sys
import anyio
from pyforkfd import _core, subprocess

async def main():
    done = await anyio.run_process([sys.executable, "-c", "print(input()[::-1])"], input=b"ab")
    assert done.stdout == b"ba\\n", done
    async with await anyio.open_process(["sleep", "60"]) as child:
        child.terminate()
        assert await child.wait() == -15
    return await anyio.to_process.run_sync(sum, (1, 2))

if __name__ == "__main__":  # the worker process of anyio.to_process imports this
    subprocess.install()
    before = _core.counters()["spawned"]
    assert anyio.run(main, backend=sys.argv[1]) == 3
    assert _core.counters()["spawned"] >= before + 3
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_is_served(backend: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ANYIO)
    subprocess.run([sys.executable, "-W", "error", script, backend], check=True, timeout=120)
