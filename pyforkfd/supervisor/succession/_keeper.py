"""The supervisor's end of the keeper, csrc/keeper, which holds descriptors and restarts it."""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pyforkfd as ff
from pyforkfd import _core
from pyforkfd._fd import Fd
from pyforkfd._process import Process, exit_status
from pyforkfd._standard_streams import flush_streams

_REPORT = struct.Struct("=iii")  # struct report of csrc/keeper/link.c: pid, code, status
_TIMEOUT = 1.0  # seconds; the keeper does nothing but read its socket
_MOST_REPORTS = 1024
_ROOT = Path(__file__).parents[3]


def keeper_program() -> Path:
    """Return the path of the keeper."""
    return Path(__file__).with_name("forkfd-keeper")


def execute_keeper(arguments: Sequence[str] | None = None) -> NoReturn:
    """Execute the keeper in place of this process; it starts this program again as its child.

    Args:
        arguments: program and arguments for the keeper to start; None: those of this process.

    Raises:
        OSError: the keeper cannot be executed; nothing has changed.
    """
    program = os.fspath(keeper_program())
    if arguments is None:
        arguments = own_arguments()
    flush_streams()
    os.execv(program, [program, "--", *arguments])


def own_arguments() -> list[str]:
    """Return the arguments that start this program again: the interpreter's path and options.

    ``python -m pyforkfd`` imports from the current directory first, so that a module which
    another user has put there in the meantime would run as us: with -P it does not.  The main
    module of another program may be in that directory, which is then on its path as before.
    """
    words = sys.orig_argv[1:]
    main = getattr(sys.modules["__main__"], "__spec__", None)
    ours = main is not None and main.name == "pyforkfd.__main__"
    if ours and not sys.flags.safe_path and os.path.realpath(_ROOT) != os.getcwd():
        words = ["-P", *words]
    return [sys.executable, *words]


class Keeper:
    """The connection to the keeper.  Owns its descriptor.

    Attributes:
        gone: the keeper has died.
    """

    def __init__(self, fd: Fd) -> None:
        """Use the inherited connection.

        Args:
            fd: the socket; taken.
        """
        self._sock = socket.socket(fileno=fd.detach())
        self._reports: dict[int, ff.ExitStatus] = {}
        self.gone = False

    def fileno(self) -> int:
        """Return the socket's number, readable when a report has come; borrowed."""
        return self._sock.fileno()

    def hold(self, name: str, fd: int) -> None:
        """Let the keeper hold a duplicate of a descriptor.

        Args:
            name: the duplicate that it holds by the same name is closed.
            fd: borrowed.

        Raises:
            OSError: EPIPE where the keeper has died; TimeoutError.
        """
        ff.send_fds(self._sock, b"+" + name.encode(), [fd], timeout=_TIMEOUT)

    def release(self, name: str = "") -> None:
        """Let the keeper close a duplicate.

        Args:
            name: of the duplicate; empty: all of them.

        Raises:
            OSError: as :meth:`hold`.
        """
        ff.send_fds(self._sock, b"-" + name.encode(), [], timeout=_TIMEOUT)

    def serving(self) -> None:
        """Report that this supervisor serves, so that its start counts as no failure.

        Raises:
            OSError: as :meth:`hold`.
        """
        ff.send_fds(self._sock, b"=", [], timeout=_TIMEOUT)

    def read(self) -> None:
        """Read the reports of its children's ends, which are a predecessor's workers."""
        self._receive(0.0)

    def _receive(self, timeout: float) -> bool:
        received = False
        while not self.gone:
            self._sock.settimeout(0.0 if received else timeout)
            try:
                data = self._sock.recv(_REPORT.size)
            except (BlockingIOError, TimeoutError):
                return received
            except OSError:
                data = b""
            if len(data) < _REPORT.size:
                self.gone = True  # SIGTERM comes with it, prctl(2) PR_SET_PDEATHSIG
                return received
            received = True
            pid, code, status = _REPORT.unpack(data)
            known = exit_status((True, code, status, None))
            assert known is not None
            self._reports[pid] = known
            if len(self._reports) > _MOST_REPORTS:
                del self._reports[next(iter(self._reports))]
        return received

    def status(self, pid: int) -> ff.ExitStatus | None:
        """Return the exit status of the keeper's child that has ended; None: no report in time."""
        until = time.monotonic() + _TIMEOUT
        self._receive(0.0)
        while pid not in self._reports and (left := until - time.monotonic()) > 0:
            if not self._receive(left):
                break
        return self._reports.pop(pid, None)

    def forget(self, pid: int) -> None:
        """Discard the reports of a pid: they are of an earlier process with the same number."""
        self.read()
        self._reports.pop(pid, None)

    def close(self) -> None:
        """Close the connection; the keeper goes on holding its duplicates."""
        self._sock.close()


class Adopted(Process):
    """A predecessor's process: a child of the keeper, which reaps it and reports its end."""

    __slots__ = ("_keeper",)

    def __init__(self, pid: int, pidfd: int, keeper: Keeper) -> None:
        """Go on with it.

        Args:
            pid: its number.
            pidfd: taken.
            keeper: borrowed.
        """
        super().__init__((), pid, pidfd, "clone3", {}, frozenset())
        self._keeper = keeper
        if not _core.wait_pidfd(pidfd, 0):
            keeper.forget(pid)

    def wait(self, timeout: float | None = None) -> ff.ExitStatus:
        """Wait for its end: on the pidfd, as the child is not ours to wait for."""
        return super().wait(math.inf if timeout is None else timeout)

    def poll(self) -> ff.ExitStatus | None:
        """The exit status, or None while it runs."""
        if self._status is None and self.pidfd >= 0 and _core.wait_pidfd(self.pidfd, 0):
            # Since Linux 6.15 the pidfd has the status as well, once the process is reaped.
            self._status = self._keeper.status(self.pid)
        return super().poll()
