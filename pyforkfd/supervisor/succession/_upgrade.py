"""The hot upgrade: a new program is tried beside this one, then executed in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

from pyforkfd._closing import Closing
from pyforkfd.supervisor._reactor import Reactor

from ._preflight import Preflight
from ._succession import Succession

log = logging.getLogger("pyforkfd.supervisor")


class Upgrade(Closing):
    """The upgrade that is under way, if any.  A context manager that ends it."""

    def __init__(self, reactor: Reactor, succession: Succession) -> None:
        self._reactor = reactor
        self._succession = succession
        self._preflight: Preflight | None = None

    def begin(self, then: Callable[[], None]) -> None:
        """Start the trial of the new program.

        Args:
            then: called once the program has proved that it can take over; where it cannot,
                the reason is logged.
        """
        if self._preflight is not None:
            log.error("upgrade: another is under way; wait for its outcome")
            return
        try:
            preflight = Preflight(self._succession.fds(), self._succession.text())
            with ExitStack() as on_failure:
                on_failure.callback(preflight.close)
                self._reactor.add(preflight.fileno(), lambda _: self._ended(then))
                on_failure.pop_all()
        except OSError as error:
            _log_failure(error)
            return
        self._preflight = preflight

    def _ended(self, then: Callable[[], None]) -> None:
        assert self._preflight is not None
        reason = self._preflight.why_not()
        self.close()
        if reason:
            _log_failure(reason)
        else:
            then()

    def execute(self) -> None:
        """Execute the new program in place of this one.  Returns only where that fails."""
        log.info("upgrade: the new program takes over")
        try:
            self._succession.execute()
        except OSError as error:
            _log_failure(error)

    @property
    def deadline(self) -> float | None:
        """The time by which the trial must have ended; None: none is under way."""
        return None if self._preflight is None else self._preflight.deadline

    def look(self) -> None:
        """Kill a trial whose time is over."""
        if self._preflight is not None:
            self._preflight.look()

    def close(self) -> None:
        """End the trial that is under way."""
        if self._preflight is not None:
            self._reactor.remove(self._preflight.fileno())
            self._preflight.close()
            self._preflight = None


def _log_failure(why: object) -> None:
    log.error("upgrade: nothing has changed: %s", why)
