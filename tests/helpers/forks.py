"""Children by fork(), which run a function and exit."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyforkfd as ff

OPEN, INHERITABLE, CLOSED = 0, 1, 2


def build_library(folder: Path) -> Path:
    """Compile forks.c, for ctypes."""
    path, source = folder / "forks.so", Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, source], check=True)
    return path


@contextmanager
def beside_threads() -> Iterator[None]:
    """Ignore the warnings of forks beside threads, such as pytest's watchdog."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ForkWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork, Python 3.12
        yield


def end(work: Callable[[], object]) -> None:
    """Run `work` in a child and exit with its result: None is 0, an exception 99."""
    code: object = 99
    try:
        code = work() or 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 98)


def os_fork(work: Callable[[], object]) -> int:
    """Return the exit code of `work` in a child of os.fork."""
    with beside_threads():
        pid = os.fork()
    if pid == 0:
        end(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def our_fork(work: Callable[[], object]) -> int:
    """Return the exit code of `work` in a child of ff.fork."""
    with beside_threads():
        child = ff.fork()
    if child is None:
        end(work)
    assert child is not None
    with child:
        code = child.wait().returncode
    assert code is not None
    return code


def state(fd: int) -> int:
    """Return OPEN (close-on-exec), INHERITABLE or CLOSED."""
    try:
        return OPEN if ff.cloexec(fd) else INHERITABLE
    except OSError:
        return CLOSED
