"""The keeper's other end: csrc/keeper holds what it is given, and starts us again."""

from __future__ import annotations

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

_REPORT = struct.Struct("=iii")  # struct report of csrc/keeper/link.c: pid, code, status
_PATIENCE = 1.0  # seconds; it does nothing but answer
_MOST_REPORTS = 1024


def keeper_program() -> Path:
    """Where the keeper is."""
    return Path(__file__).with_name("forkfd-keeper")


def become_kept(arguments: Sequence[str] | None = None) -> NoReturn:
    """Execute the keeper in our place, which starts us again as its child.

    Args:
        arguments: program and arguments to be started; None: those of this process.

    Raises:
        OSError: it could not be executed; nothing has changed.
    """
    program = os.fspath(keeper_program())
    if arguments is None:
        arguments = own_arguments()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [program, "--", *arguments])


def own_arguments() -> list[str]:
    """What starts this program again: the interpreter by its path, and its options."""
    return [sys.executable, *sys.orig_argv[1:]]


class Keeper:
    """The connection to it.  Owns its descriptor."""

    def __init__(self, fd: Fd) -> None:
        """Go on with what it has given us; taken."""
        self._sock = socket.socket(fileno=fd.detach())
        self._reports: dict[int, ff.ExitStatus] = {}
        self.gone = False

    def fileno(self) -> int:
        """Readable when it has something to tell; borrowed."""
        return self._sock.fileno()

    def hold(self, name: str, fd: int) -> None:
        """Have it hold a duplicate; of a name that it has, in place of that.

        Raises:
            OSError: EPIPE where it is gone; TimeoutError.
        """
        ff.send_fds(self._sock, b"+" + name.encode(), [fd], timeout=_PATIENCE)

    def release(self, name: str = "") -> None:
        """Have it close what it holds by a name; without one all.

        Raises:
            OSError: as :meth:`hold`.
        """
        ff.send_fds(self._sock, b"-" + name.encode(), [], timeout=_PATIENCE)

    def serving(self) -> None:
        """Tell it that starting us was no failure.

        Raises:
            OSError: as :meth:`hold`.
        """
        ff.send_fds(self._sock, b"=", [], timeout=_PATIENCE)

    def read(self) -> None:
        """Take what it has told: how its children ended, our predecessor's workers."""
        self._receive(0.0)

    def _receive(self, timeout: float) -> bool:
        got = False
        while not self.gone:
            self._sock.settimeout(0.0 if got else timeout)
            try:
                data = self._sock.recv(_REPORT.size)
            except (BlockingIOError, TimeoutError):
                return got
            except OSError:
                data = b""
            if len(data) < _REPORT.size:
                self.gone = True  # it sends us SIGTERM by that, prctl(2) PR_SET_PDEATHSIG
                return got
            got = True
            pid, code, status = _REPORT.unpack(data)
            known = exit_status((True, code, status, None))
            assert known is not None
            self._reports[pid] = known
            if len(self._reports) > _MOST_REPORTS:
                del self._reports[next(iter(self._reports))]
        return got

    def status(self, pid: int) -> ff.ExitStatus | None:
        """How a child of it has ended, which has; None if it does not tell in time."""
        until = time.monotonic() + _PATIENCE
        self._receive(0.0)
        while pid not in self._reports and (left := until - time.monotonic()) > 0:
            if not self._receive(left):
                break
        return self._reports.pop(pid, None)

    def forget(self, pid: int) -> None:
        """Whatever was told of this number was of another process, which ended long ago."""
        self.read()
        self._reports.pop(pid, None)

    def close(self) -> None:
        """Close the connection; what it holds it goes on to hold."""
        self._sock.close()


class Adopted(Process):
    """A process of our predecessor: the keeper's child, who reaps it and tells us."""

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

    def poll(self) -> ff.ExitStatus | None:
        """The exit status, or None while it runs."""
        if self._status is None and self.pidfd >= 0 and _core.wait_pidfd(self.pidfd, 0):
            # Since Linux 6.15 the pidfd would tell as well, once it is reaped.
            self._status = self._keeper.status(self.pid)
        return super().poll()
