"""The metrics endpoint on the loop: a listener, a text file, or both."""

from __future__ import annotations

import logging

import pyforkfd as ff
from pyforkfd._closing import Closing
from pyforkfd._trusted_files import demand_socket_place
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.spec._spec import Metrics

from ._counters import Metrics as Counters
from ._prometheus import Exposition, write_textfile
from ._server import ScrapeServer

log = logging.getLogger("pyforkfd.supervisor")

_TICK = 1.0  # seconds


class Endpoint(Closing):
    """The listener and the text file of the metrics.  Owns its listener.

    Where the specification names neither, nothing is done.
    """

    def __init__(self, config: Metrics, counters: Counters, reactor: Reactor) -> None:
        """Bind the listener.

        Args:
            config: the section ``[metrics]``.
            counters: the values to show.
            reactor: watches the listener.

        Raises:
            MetricsUnavailableError: prometheus_client is missing or too old.
            OSError, ValueError: the listener cannot be made.
        """
        self._config = config
        self._reactor = reactor
        self._server: ScrapeServer | None = None
        self._tick_at = self._write_at = 0.0
        self._exposition: Exposition | None = None
        if config.address is None and config.textfile is None:
            return
        self._exposition = Exposition(counters)
        if config.address is not None:
            if config.address.startswith("unix:") and not config.address.startswith("unix:@"):
                demand_socket_place(config.address.removeprefix("unix:"))
            server = ScrapeServer(
                ff.bind(config.address), self._exposition.render, counters.degraded
            )
            self._server = server
            reactor.add(server.fileno(), lambda _: server.handle())

    @property
    def addresses(self) -> list[str]:
        """The address that is bound, if any, as the specification writes it."""
        address = self._config.address
        return [] if self._server is None or address is None else [address]

    @property
    def is_open(self) -> bool:
        """Whether :meth:`poll` has anything to do."""
        return self._exposition is not None

    def poll(self, now: float) -> None:
        """Drop connections that are too slow, and write the file when that is due."""
        if self._server is not None and now >= self._tick_at:
            self._tick_at = now + _TICK
            self._server.tick()
        if self._exposition is None or self._config.textfile is None or now < self._write_at:
            return
        self._write_at = now + self._config.interval
        try:
            write_textfile(self._config.textfile, self._exposition.render()[1])
        except OSError as error:
            log.warning("metrics: %s", error)

    def close(self) -> None:
        """Close the listener; the file stays."""
        if self._server is not None:
            self._reactor.remove(self._server.fileno())
            self._server.close()
            self._server = None
