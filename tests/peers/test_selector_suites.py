"""The interpreter's own tests of selectors, epoll and asyncio's selector loop, on ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from suites import run_both

# A suite that hangs ends by itself, with the name of its test: tests/helpers/run_suite.py.
pytestmark = pytest.mark.timeout(1900)

ADAPTERS = Path(__file__).parent / "adapters"
ASYNCIO = [
    "test.test_asyncio.test_events.EPollEventLoopTests",
    "test.test_asyncio.test_selector_events",
    "test.test_asyncio.test_unix_events",
    "test.test_asyncio.test_streams",
    "test.test_asyncio.test_server",
    "test.test_asyncio.test_sock_lowlevel",
    "test.test_asyncio.test_buffered_proto",
    "test.test_asyncio.test_sendfile",
    "test.test_asyncio.test_runners",
    "test.test_asyncio.test_subprocess",
]


def test_selectors(tmp_path: Path) -> None:
    names = [
        f"test.test_selectors.{case}" for case in ("EpollSelectorTestCase", "DefaultSelectorTestCase")
    ]
    _, ours = run_both(names, adapter=ADAPTERS / "selector.py", tmp_path=tmp_path)
    assert ours.calls is not None and ours.calls > 20
    assert len(ours.passed) >= 35, ours.outcomes


def test_epoll(tmp_path: Path) -> None:
    _, ours = run_both(["test.test_epoll"], adapter=ADAPTERS / "epoll.py", tmp_path=tmp_path)
    assert ours.calls is not None and ours.calls >= 8
    assert len(ours.passed) >= 10, ours.outcomes


def test_asyncio(tmp_path: Path) -> None:
    _, ours = run_both(ASYNCIO, adapter=ADAPTERS / "selector.py", tmp_path=tmp_path)
    assert ours.calls is not None and ours.calls > 1000
    assert len(ours.passed) > 300, ours.outcomes
