"""The service manager above us, such as systemd: told how we are, sd_notify(3)."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyforkfd as ff

log = logging.getLogger("pyforkfd.supervisor")

_MOST_UNSAID = 64  # announcements; the oldest go first
_RETRY = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class _Said:
    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    main_pid: int | None = None
    watchdog: bool = False


class Manager:
    """What NOTIFY_SOCKET and WATCHDOG_USEC of our environment ask for; nothing without.

    The loop itself gives the sign of life, so it is one of the loop.  It never waits for the
    manager: what finds no room in its queue is said later.
    """

    def __init__(self) -> None:
        """Read the environment; the watchdog's variables are removed, they are ours alone."""
        self._listens = bool(os.environ.get("NOTIFY_SOCKET"))
        self._period = _watchdog_period() if self._listens else None
        self._next = self._retry = 0.0
        self._text = ""
        self._unsaid: deque[_Said] = deque(maxlen=_MOST_UNSAID)

    def announce(self, what: Literal["ready", "reloading", "stopping"]) -> None:
        """Say what has become of us; ``reloading`` comes with MONOTONIC_USEC."""
        self._say(
            _Said(
                ready=what == "ready",
                reloading=what == "reloading",
                stopping=what == "stopping",
                main_pid=os.getpid() if what == "ready" else None,
            )
        )

    def look(self, now: float, text: Callable[[], str]) -> None:
        """Say what is new, and that we live.

        Args:
            now: seconds on a clock that never goes back.
            text: what STATUS= is to be; called only if somebody wants to know.
        """
        if not self._listens or not self._flush():
            self._retry = now + _RETRY
            return
        said = text()
        news = said if said != self._text else None
        alive = self._period is not None and now >= self._next
        if alive and self._period is not None:
            self._next = now + self._period
        if news is not None or alive:
            self._text = said
            self._say(_Said(status=news, watchdog=alive))

    def due(self) -> float | None:
        """When there is something to say, on the clock of :meth:`look`; None: who knows."""
        if self._unsaid:
            return self._retry
        return None if self._period is None else self._next

    def _say(self, said: _Said) -> None:
        self._unsaid.append(said)
        self._flush()

    def _flush(self) -> bool:
        """Whether everything is said."""
        while self._unsaid:
            said = self._unsaid[0]
            try:
                ff.notify(
                    ready=said.ready,
                    reloading=said.reloading,
                    stopping=said.stopping,
                    status=said.status,
                    main_pid=said.main_pid,
                    watchdog=said.watchdog,
                    timeout=0,
                )
            except BlockingIOError:
                return False
            except (OSError, ValueError) as error:
                log.warning("the service manager was not told: %s", error)
            self._unsaid.popleft()
        return True


def _watchdog_period() -> float | None:
    """Half of WATCHDOG_USEC where it is meant for us, sd_watchdog_enabled(3)."""
    period = os.environ.pop("WATCHDOG_USEC", None)
    pid = os.environ.pop("WATCHDOG_PID", None)
    if period is None or (pid is not None and pid != str(os.getpid())):
        return None
    if not period.isascii() or not period.isdecimal() or int(period) == 0:
        log.warning("WATCHDOG_USEC=%s is not a number of microseconds", period)
        return None
    return int(period) / 2e6
