"""The hot upgrade: another program is tried beside us, then executed in our place."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyforkfd._closing import Closing
from pyforkfd.supervisor._reactor import Reactor

from ._preflight import Preflight
from ._succession import Succession

log = logging.getLogger("pyforkfd.supervisor")


class Upgrade(Closing):
    """At most one is under way.  A context manager that ends it."""

    def __init__(self, reactor: Reactor, succession: Succession) -> None:
        self._reactor = reactor
        self._succession = succession
        self._preflight: Preflight | None = None

    def begin(self, then: Callable[[], None]) -> None:
        """Try the program.

        Args:
            then: called once it has shown that it can take over; where it cannot the log
                says why.
        """
        if self._preflight is not None:
            log.error("upgrade: one is under way")
            return
        try:
            self._preflight = Preflight(self._succession.fds(), self._succession.text())
        except OSError as error:
            _nothing_changed(error)
            return
        self._reactor.add(self._preflight.fileno(), lambda _: self._ended(then))

    def _ended(self, then: Callable[[], None]) -> None:
        assert self._preflight is not None
        why_not = self._preflight.why_not()
        self.close()
        if why_not:
            _nothing_changed(why_not)
        else:
            then()

    def execute(self) -> None:
        """Become the program.  Returns only where that fails."""
        log.info("upgrade: the new program takes over")
        try:
            self._succession.execute()
        except OSError as error:
            _nothing_changed(error)

    @property
    def deadline(self) -> float | None:
        """When to look, if it is under way."""
        return None if self._preflight is None else self._preflight.deadline

    def look(self) -> None:
        """End a trial that takes too long."""
        if self._preflight is not None:
            self._preflight.look()

    def close(self) -> None:
        """End what is under way."""
        if self._preflight is not None:
            self._reactor.remove(self._preflight.fileno())
            self._preflight.close()
            self._preflight = None


def _nothing_changed(why: object) -> None:
    log.error("upgrade: nothing has changed: %s", why)
