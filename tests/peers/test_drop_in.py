"""The interpreter's own tests of starting processes, with our engine installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from suites import run_both

DROP_IN = Path(__file__).parent / "adapters" / "drop_in.py"
# How often at least the suite starts a child through us; in truth far more.
SUITES = {
    "test.test_subprocess": 200,
    "test.test_asyncio.test_subprocess": 50,
    "test.test_posix.TestPosixSpawn": 15,
    "test.test_posix.TestPosixSpawnP": 15,
}


@pytest.mark.parametrize("name", SUITES)
def test_suite(name: str, tmp_path: Path) -> None:
    _, ours = run_both([name], adapter=DROP_IN, tmp_path=tmp_path)
    assert ours.calls is not None
    assert ours.calls >= SUITES[name]
