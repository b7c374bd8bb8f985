"""CPython's own tests of fork and of inheritable descriptors, run with ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from suites import run_both

# A suite that hangs ends by itself, with the name of its test: tests/helpers/run_suite.py.
pytestmark = pytest.mark.timeout(1900)

ADAPTER = Path(__file__).parent / "adapters" / "fork.py"
# Names, and how often our functions must have been called at least.
SUITES = {
    "fork": (["test.test_fork1"], 3),
    "inheritance": (["test.test_os.FDInheritanceTests"], 10),
    "threads": (["test.test_thread.TestForkInThread", "test.test_threading.ThreadJoinOnShutdown"], 1),
}


@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite: str, tmp_path: Path) -> None:
    names, least = SUITES[suite]
    _, ours = run_both(names, adapter=ADAPTER, tmp_path=tmp_path)
    assert ours.calls is not None and ours.calls >= least
