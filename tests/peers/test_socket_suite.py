"""The interpreter's own tests of passing descriptors, on our functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from suites import run_both

# A suite that hangs ends by itself, with the name of its test: tests/helpers/run_suite.py.
pytestmark = pytest.mark.timeout(1900)

ADAPTER = Path(__file__).parent / "adapters" / "passing.py"
NAMES = [
    "test.test_socket.RecvmsgSCMRightsStreamTest",
    "test.test_socket.RecvmsgIntoSCMRightsStreamTest",
    "test.test_socket.SendRecvFdsTests",
]


def test_scm_rights(tmp_path: Path) -> None:
    stock, ours = run_both(NAMES, adapter=ADAPTER, tmp_path=tmp_path)
    for name in NAMES:
        assert any(test.startswith(name) for test in ours.passed), name
    assert len(stock.passed) <= len(ours.passed)
    # Each sends, or receives, at least once; the tests of empty and cut arrays do only one.
    assert ours.calls is not None and ours.calls >= len(ours.passed) * 3 // 4
