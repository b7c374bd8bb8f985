"""sys.stdin, stdout and stderr of a zygote's worker: right for whatever 0, 1 and 2 are."""

from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import HELPERS

import pyforkfd as ff
from pyforkfd.zygote import Zygote

REPORT_FD = 50  # the descriptor on which jobs report
NOWHERE = "none"  # where a pipe is


@pytest.fixture(params=[0, 1], ids=["cold", "warm"])
def zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    with Zygote(preload=["zygote_jobs"], warm=request.param) as zygote:
        zygote.start()
        yield zygote


def report(zygote: Zygote, fds: dict[int, Any]) -> list[Any]:
    fds = {REPORT_FD: ff.PIPE, **fds}
    with zygote.spawn("zygote_jobs:streams", args=(REPORT_FD,), fds=fds) as worker:
        seen: list[Any] = json.loads(worker.pipes[REPORT_FD].read())
        if worker.stdout is not None:
            assert worker.stdout.read() == b"written\n"
    assert worker.status is not None and worker.status.success, worker.status
    return seen


def test_files(zygote: Zygote, tmp_path: Path) -> None:
    """Each knows where it is in its file: at another place each time."""
    path, log = tmp_path / "file", tmp_path / "log"
    for begin in (0, 4, 9):
        path.write_bytes(b"0123456789")
        log.write_bytes(b"0123456789")
        with path.open("rb", buffering=0) as source, log.open("r+b", buffering=0) as sink:
            source.seek(begin)
            sink.seek(begin)
            seen = report(zygote, {0: source, 1: sink, 2: sink})
            assert seen == [
                ["<stdin>", 10, False, False],
                ["<stdout>", begin, False, False],
                ["<stderr>", begin, True, False],
                "0123456789",
            ]
            assert sink.tell() == begin + len("written\n")
        assert log.read_bytes()[begin:].startswith(b"written\n")


def test_pipes(zygote: Zygote) -> None:
    reader, writer = os.pipe()
    with ff.Fd(reader) as source:
        os.write(writer, b"text")
        os.close(writer)
        assert report(zygote, {0: source, 1: ff.PIPE}) == [
            ["<stdin>", NOWHERE, False, False],
            ["<stdout>", NOWHERE, False, False],
            seen_as_inherited(2),
            "text",
        ]


def test_the_null_device(zygote: Zygote) -> None:
    seen = report(zygote, {0: ff.DEVNULL, 1: ff.DEVNULL, 2: ff.DEVNULL})
    assert [stream[0] for stream in seen[:3]] == ["<stdin>", "<stdout>", "<stderr>"]
    assert [stream[2] for stream in seen[:3]] == [False, False, True]
    assert seen[3] == ""


def test_a_terminal(zygote: Zygote) -> None:
    """Which is written to by lines."""
    master, slave = pty.openpty()
    with ff.Fd(master) as ours, ff.Fd(slave) as theirs:
        seen = report(zygote, {0: ff.DEVNULL, 1: theirs})
        assert seen[1] == ["<stdout>", NOWHERE, True, False]
        assert os.read(ours.fileno(), 100) == b"written\r\n"


def test_closed_ones(zygote: Zygote) -> None:
    """As the interpreter has it: None, and print() does nothing."""
    seen = report(zygote, {0: ff.CLOSED, 1: ff.CLOSED})
    assert seen[:2] == [None, None] and seen[3] is None


def seen_as_inherited(fd: int) -> list[Any]:
    position: Any = NOWHERE
    try:
        position = os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        pass
    return ["<stderr>", position, True, False]


CLOSED = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.close(0)
os.close(1)
from pyforkfd.zygote import Zygote
with Zygote(preload=["zygote_jobs"]) as zygote:
    for _ in range(2):
        assert zygote.spawn("zygote_jobs:write", args=("lost",)).wait().success
"""


def test_an_application_without_streams() -> None:
    helpers = HELPERS
    with ff.spawn([sys.executable, "-P", "-c", CLOSED, helpers], fds={2: ff.PIPE}) as program:
        assert program.stderr is not None
        assert program.stderr.read() == b""
    assert program.status is not None and program.status.success
