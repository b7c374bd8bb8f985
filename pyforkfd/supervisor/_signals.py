"""Signals that are read from a descriptor: they never interrupt the supervisor."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterable, Iterator

from pyforkfd import _core
from pyforkfd._closing import Closing
from pyforkfd._fd import Fd

_INFO = struct.Struct("IiII112x")  # signalfd_siginfo: signo, errno, code, pid


class SignalQueue(Closing):
    """A signalfd(2); its signals are blocked in this thread until it is closed.

    An ignored SIGCHLD is reset meanwhile: with it the kernel would reap the children itself, and
    nobody would have their exit codes.

    A child needs a signal mask of its own, or it would inherit the blocked signals.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        """Block signals in this thread and queue them.

        Args:
            signals: their numbers.

        Raises:
            OSError: no descriptor is free; the mask is as before.
        """
        wanted = set(signals)
        mask = sum(1 << (signum - 1) for signum in wanted)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        try:
            self._fd = Fd(_core.signal_fd(mask))
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise
        self._reaped_by_kernel = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        if self._reaped_by_kernel:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def fileno(self) -> int:
        """Return the number of the descriptor; borrowed."""
        return self._fd.fileno()

    def read(self) -> Iterator[tuple[int, int]]:
        """Yield every signal that waits: (its number, the sender's pid, 0 without a sender)."""
        while True:
            try:
                data = os.read(self._fd.fileno(), 16 * _INFO.size)
            except BlockingIOError:
                return
            for signum, _, _, pid in _INFO.iter_unpack(data):
                yield signum, pid

    def close(self) -> None:
        """Restore the thread's signal mask; signals that still wait are delivered now."""
        self._fd.close()
        if self._reaped_by_kernel:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
