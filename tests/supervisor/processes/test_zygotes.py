"""Zygotes that are started beside the loop, without a thread."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import gone

from pyforkfd.supervisor.processes._zygotes import Zygotes
from pyforkfd.supervisor.spec._spec import ZygoteSpec
from pyforkfd.zygote import Zygote, ZygoteError


@pytest.fixture
def zygotes() -> Iterator[Zygotes]:
    with Zygotes() as found:
        yield found


def started(zygotes: Zygotes, spec: ZygoteSpec) -> Zygote:
    while (zygote := zygotes.get(spec, 1)) is None:
        assert select.select([zygotes.fileno()], [], [], 30)[0]
        zygotes.read()
    return zygote


def test_it_is_there_when_the_descriptor_says_so(zygotes: Zygotes) -> None:
    spec = ZygoteSpec(name="one", preload=("json",))
    before = set(os.listdir("/proc/self/task"))
    assert zygotes.get(spec, 1) is None
    assert set(os.listdir("/proc/self/task")) <= before, "a thread"
    one = started(zygotes, spec)
    assert started(zygotes, spec) is one
    with one.spawn("os:_exit", args=(3,)) as worker:
        assert worker.wait().code == 3


def test_one_that_fails_says_why_and_is_tried_again(
    zygotes: Zygotes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late.py").write_text("import nosuchmodule")
    spec = ZygoteSpec(name="late", preload=("late",))
    with pytest.raises(ZygoteError, match="nosuchmodule"):
        started(zygotes, spec)
    (tmp_path / "late.py").write_text("")
    assert started(zygotes, spec).pid


def test_one_that_was_killed_is_replaced_without_waiting(zygotes: Zygotes) -> None:
    spec = ZygoteSpec(name="one")
    first = started(zygotes, spec)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert gone(lambda: first.pid is None)
    assert zygotes.get(spec, 1) is None
    assert started(zygotes, spec) is not first


def test_one_that_is_killed_while_it_starts_is_an_error(zygotes: Zygotes) -> None:
    spec = ZygoteSpec(name="one", preload=("json",))
    assert zygotes.get(spec, 1) is None
    pid = zygotes._zygotes["one", 1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ZygoteError, match="ended before it was ready"):
        started(zygotes, spec)


def test_those_that_nobody_wants_end_also_while_they_start(zygotes: Zygotes) -> None:
    kept, other = ZygoteSpec(name="kept"), ZygoteSpec(name="other")
    one = started(zygotes, kept)
    assert zygotes.get(other, 1) is None
    zygotes.keep([("kept", 1)])
    assert started(zygotes, kept) is one
    assert not select.select([zygotes.fileno()], [], [], 0)[0]
