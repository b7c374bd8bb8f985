"""The report of lost log records: on standard error at once, in the log when it is over."""

from __future__ import annotations

import math
import os
import select

_PAUSE = 10.0  # seconds between two reports of one place at first; doubled by each
_LONGEST_PAUSE = 3600.0  # a report may itself be lost, and cause the next
_ONGOING = 60.0  # seconds after which a loss that goes on is reported all the same
_QUIET = 60.0  # seconds between two lines of one place on standard error


class Loss:
    """The reports of the records that are lost at one place.

    The times come from the caller.

    Attributes:
        reported: count of the lost records that a report has had.
    """

    def __init__(self) -> None:
        self.reported = 0
        self._began: float | None = None  # of the loss that is not reported yet
        self._pause = _PAUSE
        self._reported_at = self._noticed_at = -math.inf

    def notice(self, text: str, now: float) -> None:
        """Write a line to standard error, once for a loss and once a minute at most.

        Args:
            text: the place and the reason.
            now: seconds of a clock that does not jump.
        """
        if self._began is None:
            self._began = now
            if now - self._reported_at > 2 * self._pause:
                self._pause = _PAUSE
            if now - self._noticed_at >= _QUIET:
                self._noticed_at = now
                write_stderr(text)

    def due(self, now: float, over: bool) -> bool:
        """Return whether to report the loss now.

        Args:
            now: as for :meth:`notice`.
            over: whether the loss is over; one that goes on is reported after a minute.
        """
        if self._began is None or now - self._reported_at < self._pause:
            return False
        return over or now - self._began >= _ONGOING

    def report(self, total: int, now: float) -> None:
        """Count records as reported.

        Args:
            total: count of all records lost so far.
            now: as for :meth:`notice`.
        """
        self.reported = total
        if self._reported_at > -math.inf:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._reported_at = now
        self._began = None


def write_stderr(text: str) -> None:
    """Write a line to standard error, if that neither waits nor fails."""
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(0):
            line = f"pyforkfd: {text}\n".encode("utf-8", "backslashreplace")
            os.write(2, line[: select.PIPE_BUF])
    except OSError:
        pass  # closed, or its reader has closed
