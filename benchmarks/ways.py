"""The compared ways to start a program: each starts it, waits, and returns the time."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pyforkfd as ff

HERE = Path(__file__).parent
TRUE = "/bin/true"
LIMIT = "C vfork+exec"
COMMAND = "Command.spawn"
SPAWN = "spawn"
POSIX_SPAWN = "os.posix_spawn"
POPEN = "subprocess.Popen"
POPEN_PREEXEC = "Popen(preexec_fn)"  # which forks instead of vfork
FORK = "os.fork+exec"
FORKING = {POPEN_PREEXEC, FORK}

Way: TypeAlias = Callable[[], int]
"""Starts a program, reaps it; returns the nanoseconds from the start until it is reaped."""


def compile_c(source: str, target: Path, *options: str) -> None:
    """Compile one of the C files beside this one with ``$CC``, or cc."""
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", *options, "-o", target, HERE / source], check=True)


def limit_of(program: str) -> Way:
    """Return the bare C loop, timed inside C, so without the time of ctypes."""
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "limit.so"
        compile_c("limit.c", library, "-shared", "-fPIC")
        limit_run = ctypes.CDLL(os.fspath(library)).limit_run
    limit_run.restype = ctypes.c_longlong
    limit_run.argtypes = [ctypes.c_char_p]
    path = os.fsencode(program)

    def limit() -> int:
        taken = int(limit_run(path))
        if taken < 0:
            raise OSError(-taken, os.strerror(-taken), program)
        return taken

    return limit


def _timed(start_and_wait: Callable[[], int | None]) -> Way:
    def way() -> int:
        begin = time.perf_counter_ns()
        status = start_and_wait()
        taken = time.perf_counter_ns() - begin
        if status != 0:
            raise ChildProcessError(f"the child's status is {status}")
        return taken

    return way


def _fork_exec(program: str) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(program, [program])
        finally:
            os._exit(127)
    return os.waitpid(pid, 0)[1]


def all_ways(program: str = TRUE) -> dict[str, Way]:
    """Return every way by its name, the limit first.  Closing the pidfd is timed as well."""
    argv = [program]
    command = ff.Command(argv)
    return {
        LIMIT: limit_of(program),
        COMMAND: _timed(lambda: command.spawn().wait().returncode),
        SPAWN: _timed(lambda: ff.spawn(argv).wait().returncode),
        POSIX_SPAWN: _timed(lambda: os.waitpid(os.posix_spawn(program, argv, os.environ), 0)[1]),
        POPEN: _timed(lambda: subprocess.Popen(argv).wait()),
        POPEN_PREEXEC: _timed(lambda: subprocess.Popen(argv, preexec_fn=os.setsid).wait()),
        FORK: _timed(lambda: _fork_exec(program)),
    }
