"""CPython's own tests of multiprocessing and concurrent.futures, on a zygote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from suites import run_both

ADAPTER = Path(__file__).parent / "adapters" / "zygote_context.py"
FUTURES = "test.test_concurrent_futures"

# A suite that hangs ends by itself, with the name of its test: tests/helpers/run_suite.py.
pytestmark = pytest.mark.timeout(5000)


def test_multiprocessing_on_a_zygote(tmp_path: Path) -> None:
    _, ours = run_both(["forkserver_suite"], adapter=ADAPTER, tmp_path=tmp_path, timeout=2400)
    assert len(ours.passed) > 200
    assert (ours.calls or 0) > 300


def test_process_pools_on_a_zygote(tmp_path: Path) -> None:
    parts = ("as_completed", "deadlock", "init", "process_pool", "shutdown", "wait")
    # Their other classes are about os.fork and fresh interpreters.
    names = [*(f"{FUTURES}.test_{part}" for part in parts), "+Forkserver"]
    if sys.version_info < (3, 12):
        names = [
            f"{FUTURES}.ProcessPoolForkserver{kind}"
            for kind in (
                "AsCompletedTest",
                "FailingInitializerTest",
                "InitializerTest",
                "ProcessPoolExecutorTest",
                "ProcessPoolShutdownTest",
                "WaitTest",
            )
        ]
    _, ours = run_both(names, adapter=ADAPTER, tmp_path=tmp_path, timeout=2400)
    assert any("Forkserver" in name for name in ours.passed)
    assert (ours.calls or 0) > 50
