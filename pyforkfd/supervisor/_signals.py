"""Signals as something to read: they never interrupt the supervisor."""

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
    """A signalfd(2); the signals are blocked in this thread until it is closed.

    Children of the supervisor must be given a mask of their own.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        wanted = set(signals)
        mask = sum(1 << (number - 1) for number in wanted)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        try:
            self._fd = Fd(_core.signal_fd(mask))
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise

    def fileno(self) -> int:
        """The descriptor's number; it stays this object's."""
        return self._fd.fileno()

    def read(self) -> Iterator[tuple[int, int]]:
        """Every signal that waits, with the sender's pid, 0 if there is none."""
        while True:
            try:
                data = os.read(self._fd.fileno(), 16 * _INFO.size)
            except BlockingIOError:
                return
            for number, _, _, pid in _INFO.iter_unpack(data):
                yield number, pid

    def close(self) -> None:
        """Give the thread its mask back; what still waits is delivered now."""
        self._fd.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
