"""A worker: its identity, listeners, reports to the supervisor, and orders."""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyforkfd as ff
from pyforkfd._page import SharedPage, Slot

from ._drive import drive_in_thread, drive_on_loop, send_watchdog
from ._identity import VARIABLE, Identity, identify
from ._logging import ForkfdHandler, log_uncaught, log_writer
from ._messages import Message, Ready, Status, Stopping
from ._orders import Callback, Orders
from ._protocol import Order

if TYPE_CHECKING:
    import asyncio

__all__ = ["Order", "Worker", "current"]

_INTERVAL = 0.5  # seconds between two beats, at most
_BEATS = 5  # in the time without a beat after which the worker counts as stale


def current() -> Worker | None:
    """Return this process as a worker; the same object each time.

    Returns:
        None where no supervisor has started this process: FORKFD_WORKER is not set, or was
        inherited by a program that a worker has started.

    Raises:
        ValueError: FORKFD_WORKER is malformed, or the supervisor has another version of the
            protocol.
    """
    # By its text, as a zygote may have called this before it became a worker.
    return _current(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=1)
def _current(text: str) -> Worker | None:
    if not text:
        return None
    identity = identify(text)
    channel = None
    if identity.channel is not None:
        try:
            channel = ff.FdChannel(identity.channel)
        except ff.ChannelError:
            return None  # the descriptors are a worker's, and this has only its environment
    return Worker(identity, channel)


class Worker:
    """A process that a supervisor has started.  Made by :func:`current`.

    Orders are read by one of :meth:`attach`, :meth:`start_thread` and :meth:`poll`; each of
    them beats too, so a loop that is blocked is found.  Callbacks run where orders are read,
    in the order in which they were registered.  An order that is malformed or unknown is
    logged and ignored.

    Attributes:
        component: the name of its component.
        number: its id, never used twice.
        position: which of its component's workers it is, from 0.
        generation: the generation of its component.
        draining: whether it is to finish what it has begun, accept nothing new, and end.
        accepting: whether it is to accept connections: neither paused nor stopped nor draining.
        orphaned: whether the supervisor has closed its end of the channel.
        interval: seconds between two beats that are soon enough.
        peers: component -> how many of its workers are ready, as of the last order ``peer``.
    """

    def __init__(self, identity: Identity, channel: ff.FdChannel | None) -> None:
        """Take a worker's channel, see :func:`current`.

        Args:
            identity: the worker's place and descriptors.
            channel: to the supervisor; taken.
        """
        self.component = identity.component
        self.number = identity.worker_id
        self.position = identity.position
        self.generation = identity.generation
        self._identity = identity
        self._orders = Orders(channel, f"{self.component}: worker {self.number}")
        self._listeners: dict[str, socket.socket] | None = None
        self._slot = _open_slot(identity)
        self._next_beat = 0.0
        patience = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        self.interval = min(_INTERVAL, patience / _BEATS) if patience > 0 else _INTERVAL
        self._stop: Callable[[], None] | None = None

    @property
    def draining(self) -> bool:
        """See the class."""
        return self._orders.draining

    @property
    def accepting(self) -> bool:
        """See the class."""
        return not self._orders.obstacles

    @property
    def orphaned(self) -> bool:
        """See the class."""
        return self._orders.orphaned

    @property
    def peers(self) -> dict[str, int]:
        """See the class."""
        return self._orders.peers

    # Descriptors

    def listeners(self) -> dict[str, socket.socket]:
        """Return name -> listening (or datagram) socket, whichever way they were given.

        They belong to this object, which returns the same ones each time; closing one closes
        this process's copy alone.  The first call takes LISTEN_FDS out of the environment, and
        waits for listeners that come over the channel.

        Raises:
            ValueError, ListenerError: a listener that was announced is not there.
            EOFError: the supervisor ended before it sent them.
            PassingError: RLIMIT_NOFILE was reached while they were received.
        """
        if self._listeners is None:
            if self._identity.by_channel:
                fds = self._orders.receive_listeners()
                self._listeners = {name: _adopt(fd) for name, fd in fds.items()}
            elif self._identity.listen:
                self._listeners = {n: _adopt(fd) for n, fd in self._identity.listen.items()}
            else:
                self._listeners = {given.name: _adopt(given.fd) for given in ff.listen_fds()}
        return dict(self._listeners)

    # Reports

    def ready(self, status: str | None = None, *, speaks: bool = True) -> None:
        """Report readiness, over NOTIFY_SOCKET and the channel.

        Args:
            status: a line for people, see :meth:`status`.
            speaks: orders are read from now on, so that the supervisor may send them.  A
                worker that reads orders gets ``drain``, one that does not gets stop_signal.

        Raises:
            ValueError: the status is longer than 4000 bytes or has a line break.
            OSError: NOTIFY_SOCKET is gone.
        """
        if status is not None and self._orders.send(Status(status)):
            status = None  # both ways, an older one could arrive last
        if self._slot is not None:
            self._slot.set_ready(True)
        self.beat()
        if speaks:
            self._orders.send(Ready())
        ff.notify(ready=True, status=status)

    def status(self, text: str) -> None:
        """Report a status line, which ``pyforkfd status`` shows.

        It goes over the channel; without one, over NOTIFY_SOCKET.

        Args:
            text: a line of at most 4000 bytes in UTF-8.

        Raises:
            ValueError: the text is longer, or has a line break.
            OSError: NOTIFY_SOCKET is gone.
        """
        if not self._orders.send(Status(text)):
            ff.notify(status=text)

    def stopping(self) -> None:
        """Report that this worker leaves by itself, over NOTIFY_SOCKET and the channel.

        From then on it is not ready, and its replacement is started.  An exit with 0 is no
        crash.  When drain_timeout has passed, it gets stop_signal.

        Raises:
            OSError: NOTIFY_SOCKET is gone.
        """
        if self._slot is not None:
            self._slot.set_ready(False)
        self._orders.send(Stopping())
        ff.notify(stopping=True)

    def send(self, data: Any) -> bool:
        """Send a message to the supervisor, whose ``on_message`` gets it.

        Args:
            data: any JSON.

        Returns:
            False if there is no channel, its other end is closed, or it was full for a second.

        Raises:
            ValueError: the data is no JSON, or longer than 64 KiB with what is around it.
        """
        return self._orders.send(Message(data))

    def beat(self) -> None:
        """Beat: on the page, which takes nanoseconds, or by WATCHDOG=1.

        It may be called as often as you like; WATCHDOG=1 is sent no more often than needed.
        """
        if self._slot is not None:
            self._slot.beat()
            return
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self.interval / 2
        send_watchdog()

    def count(self, requests: int = 1, errors: int = 0) -> None:
        """Count requests that were answered, and those of them that failed."""
        if self._slot is not None:
            self._slot.add(requests, errors)

    # Orders

    def on(self, order: str, callback: Callback) -> None:
        """Register a callback for an order.

        Args:
            order: "drain", "pause", "resume", "stop_accepting", "resume_accepting",
                "accept" and "return" (shards of another position: ``order.fds``),
                "collect", "peer", "message" (``order.body["data"]``), "buffer_logs",
                "flush_logs", "log", or "orphaned" (the supervisor is gone).
            callback: an exception that it raises is logged.

        Raises:
            ValueError: there is no such order.
        """
        self._orders.on(order, callback)

    def fileno(self) -> int:
        """Return the channel's descriptor: readable for orders and at the end; borrowed.

        Raises:
            ValueError: this worker has no channel.
        """
        if self._orders.channel is None:
            raise ValueError(f"fileno: {self!r} was given no channel")
        return self._orders.channel.fileno()

    @property
    def listens(self) -> bool:
        """Whether more orders can come: there is a channel, and its other end is open."""
        return self._orders.can_come

    def poll(self, timeout: float = 0.0) -> int:
        """Beat, and follow the orders that have come; for loops of one's own.

        Args:
            timeout: seconds to wait for the first.

        Returns:
            The number of messages read.
        """
        self.beat()
        return self._orders.read(timeout)

    def attach(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Read orders and beat on an asyncio loop, until :meth:`detach`.

        Args:
            loop: None: the one that runs.

        Raises:
            RuntimeError: orders are read already.
        """
        if loop is None:
            import asyncio  # a worker with a loop has imported it; others need not

            loop = asyncio.get_running_loop()
        self._demand_idle()
        self._stop = drive_on_loop(self, loop, self.interval)

    def start_thread(self) -> None:
        """Read orders in a daemon thread, until :meth:`detach`.

        The heartbeat of that thread proves that the process runs and the GIL is free, no more.

        Raises:
            RuntimeError: orders are read already.
        """
        self._demand_idle()
        self._stop = drive_in_thread(self, self.interval)

    def detach(self) -> None:
        """End :meth:`attach` or :meth:`start_thread`; a second call does nothing."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def _demand_idle(self) -> None:
        if self._stop is not None:
            raise RuntimeError("orders are read already: detach() first")

    def setup_logging(self, level: int = logging.INFO) -> None:
        """Send records of :mod:`logging` to the supervisor's log, or else to stderr.

        Args:
            level: the level of the root logger.
        """
        writer = log_writer()
        if writer is None:
            who = f"{self.component} {self.number}"
            logging.basicConfig(level=level, format=f"{who} %(levelname)s %(name)s: %(message)s")
            return
        logging.basicConfig(level=level, handlers=[ForkfdHandler(writer)], force=True)
        log_uncaught(writer)

    def __repr__(self) -> str:
        return f"<Worker {self.number} of {self.component}, generation {self.generation}>"


def _adopt(fd: int) -> socket.socket:
    adopted = socket.socket(fileno=fd)
    adopted.set_inheritable(False)
    return adopted


def _open_slot(identity: Identity) -> Slot | None:
    if identity.page is None or identity.slot is None:
        return None
    with SharedPage(identity.page) as page:
        return page.slot(identity.slot)
