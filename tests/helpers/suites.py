"""Parts of the interpreter's own test package, run with our functions and without them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "run_suite.py"


@dataclass(frozen=True)
class Suite:
    """Each test's outcome ("passed", "failed", "skipped: why"), and how often we were called."""

    outcomes: dict[str, str]
    calls: int | None
    output: str

    @property
    def failed(self) -> set[str]:
        return {name for name, outcome in self.outcomes.items() if outcome == "failed"}

    @property
    def passed(self) -> set[str]:
        return {name for name, outcome in self.outcomes.items() if outcome == "passed"}


def demand_modules(names: list[str]) -> None:
    """Skip where this Python has not all modules of its test package; Debian's has few.

    In CI the distribution's package is installed, so there it fails.  A Python that somebody
    built has what its builder left there.
    """
    wanted = {".".join(name.split(".")[:2]) for name in names if name.startswith("test.")}
    if any(not name.startswith(("test.", "+")) for name in names):
        wanted.add("test._test_multiprocessing")  # which our own suites are made of
    missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if not missing:
        return
    what = f"this Python has no {', '.join(missing)}"
    package = "libpython{}.{}-testsuite".format(*sys.version_info)
    if os.environ.get("CI") and sys.base_prefix == "/usr":
        pytest.fail(f"{what}: .ci/install-python-tests installs it ({package})")
    pytest.skip(f"{what} (Debian's {package})")


def _start(names: list[str], adapter: Path | None, work: Path) -> subprocess.Popen[bytes]:
    work.mkdir()
    args = [sys.executable, RUNNER, work / "outcomes.json", adapter or "-", *names]
    env = {**os.environ, "TMPDIR": str(work), "PYTHONWARNINGS": "default"}
    with open(work / "output.txt", "wb") as output:
        return subprocess.Popen(
            args,
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _finish(process: subprocess.Popen[bytes], work: Path, timeout: float) -> Suite:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    output = (work / "output.txt").read_text(errors="replace")
    if process.returncode != 0 or not (work / "outcomes.json").exists():
        pytest.fail(f"the run ended with {process.returncode}:\n{output[-20000:]}", pytrace=False)
    found = json.loads((work / "outcomes.json").read_text())
    return Suite(found["outcomes"], found["calls"], output)


def run_both(
    names: list[str], *, adapter: Path, tmp_path: Path, timeout: float = 900
) -> tuple[Suite, Suite]:
    """Run (stock, ours) at the same time, so that noise of the machine affects both.

    Fails where a test that passed on stock did not pass on ours; the caller asserts the calls.
    """
    demand_modules(names)
    works = tmp_path / "stock", tmp_path / "ours"
    stock_run = _start(names, None, works[0])
    ours_run = _start(names, adapter, works[1])
    try:
        stock = _finish(stock_run, works[0], timeout)
    finally:
        ours = _finish(ours_run, works[1], timeout)
    assert stock.passed, f"nothing passed without us:\n{stock.output[-5000:]}"
    missing = stock.outcomes.keys() - ours.outcomes.keys()
    assert not missing, f"not run on ours: {sorted(missing)}\n{ours.output[-20000:]}"
    lost = {
        name: outcome
        for name, outcome in ours.outcomes.items()
        if outcome != stock.outcomes.get(name) and stock.outcomes.get(name) == "passed"
    } | dict.fromkeys(ours.failed - stock.failed, "failed")
    assert not lost, f"lost on ours: {lost}\n{ours.output[-30000:]}"
    return stock, ours
