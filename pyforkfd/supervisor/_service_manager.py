"""The reports to the service manager above the supervisor, such as systemd: sd_notify(3)."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyforkfd as ff

log = logging.getLogger("pyforkfd.supervisor")

_MOST_UNSENT = 64  # reports; the oldest are dropped first
_RETRY = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class _Report:
    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    main_pid: int | None = None
    watchdog: bool = False


class Manager:
    """The service manager that NOTIFY_SOCKET and WATCHDOG_USEC name; without them nothing.

    The loop itself sends the watchdog's keep-alive, which so proves that the loop runs.  It
    never waits for the manager: a report for which its queue is full is sent later.
    """

    def __init__(self) -> None:
        """Read the environment, and remove the watchdog's variables: they are not for workers."""
        self._listens = bool(os.environ.get("NOTIFY_SOCKET"))
        self._period = _watchdog_period() if self._listens else None
        self._next = self._retry = 0.0
        self._text = ""
        self._unsent: deque[_Report] = deque(maxlen=_MOST_UNSENT)

    def announce(self, what: Literal["ready", "reloading", "stopping"]) -> None:
        """Report a change of the service; ``reloading`` comes with MONOTONIC_USEC."""
        self._send(
            _Report(
                ready=what == "ready",
                reloading=what == "reloading",
                stopping=what == "stopping",
                main_pid=os.getpid() if what == "ready" else None,
            )
        )

    def update(self, now: float, text: Callable[[], str]) -> None:
        """Report a changed STATUS=, and the keep-alive when it is due.

        Args:
            now: seconds on a clock that never goes back.
            text: returns the value of STATUS=; called only where there is a manager.
        """
        if not self._listens or not self._flush():
            self._retry = now + _RETRY
            return
        status = text()
        changed = status != self._text
        alive = self._period is not None and now >= self._next
        if alive and self._period is not None:
            self._next = now + self._period
        if changed or alive:
            self._text = status
            self._send(_Report(status=status if changed else None, watchdog=alive))

    def due(self) -> float | None:
        """Return when :meth:`update` has something to send, on its clock; None: not known."""
        if self._unsent:
            return self._retry
        return None if self._period is None else self._next

    def _send(self, report: _Report) -> None:
        self._unsent.append(report)
        self._flush()

    def _flush(self) -> bool:
        """Send what waits; returns whether nothing waits any more."""
        while self._unsent:
            report = self._unsent[0]
            try:
                ff.notify(
                    ready=report.ready,
                    reloading=report.reloading,
                    stopping=report.stopping,
                    status=report.status,
                    main_pid=report.main_pid,
                    watchdog=report.watchdog,
                    timeout=0,
                )
            except BlockingIOError:
                return False
            except (OSError, ValueError) as error:
                log.warning("service manager: report not sent: %s", error)
            self._unsent.popleft()
        return True


def _watchdog_period() -> float | None:
    """Return half of WATCHDOG_USEC, if it is for this process: sd_watchdog_enabled(3)."""
    period = os.environ.pop("WATCHDOG_USEC", None)
    pid = os.environ.pop("WATCHDOG_PID", None)
    if period is None or (pid is not None and pid != str(os.getpid())):
        return None
    if not period.isascii() or not period.isdecimal() or int(period) == 0:
        log.warning("WATCHDOG_USEC: %s is not a number of microseconds: ignored", period)
        return None
    return int(period) / 2e6
