"""Children that another process traces, ptrace(2): their tracer reaps them before we do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import pyforkfd as ff
from pyforkfd import subprocess as dropin

# Traces a process, and neither waits for it nor ends while its standard input is open.
TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2
if libc.ptrace(0x4206, int(sys.argv[1]), None, None) != 0:  # PTRACE_SEIZE
    sys.exit(str(ctypes.get_errno()))
print("traces", flush=True)
sys.stdin.read()
"""
CHILD = [sys.executable, "-S", "-c", "import sys; sys.stdin.read(); sys.exit(7)"]


@contextmanager
def traced(pid: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-S", "-c", TRACER, str(pid)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdin and tracer.stdout and tracer.stderr
        if tracer.stdout.readline() != "traces\n":
            pytest.skip(f"no process may be traced here: errno {tracer.stderr.read()}")
        yield tracer


def test_a_wait_goes_on_until_the_tracer_has_reaped() -> None:
    with ff.spawn(CHILD, fds={0: ff.PIPE}) as child, traced(child.pid) as tracer:
        child.pipes[0].close()
        with pytest.raises(TimeoutError, match="its tracer has not reaped it"):
            child.wait(0.5)
        assert child.poll() is None
        used = time.process_time()
        with pytest.raises(TimeoutError):
            child.wait(0.5)
        assert time.process_time() - used < 0.3, "it spins"
        assert tracer.stdin
        tracer.stdin.close()
        assert child.wait(10).code == 7


def test_so_does_one_in_asyncio() -> None:
    async def main() -> None:
        with ff.spawn(CHILD, fds={0: ff.PIPE}) as child, traced(child.pid) as tracer:
            child.pipes[0].close()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(child.wait_async(), 0.5)
            assert tracer.stdin
            tracer.stdin.close()
            assert (await asyncio.wait_for(child.wait_async(), 10)).code == 7

    asyncio.run(main())


def test_and_those_of_the_drop_ins() -> None:
    async def main() -> int | None:
        child = await ff.create_subprocess_exec(*CHILD, stdin=subprocess.PIPE)
        with traced(child.pid) as tracer:
            assert child.stdin and tracer.stdin
            child.stdin.close()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(child.wait(), 0.5)
            tracer.stdin.close()
            return await asyncio.wait_for(child.wait(), 10)

    assert asyncio.run(main()) == 7
    child = dropin.Popen(CHILD, stdin=subprocess.PIPE)
    with child, traced(child.pid) as tracer:
        assert child.stdin and tracer.stdin
        child.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        tracer.stdin.close()
        assert child.wait(10) == 7
