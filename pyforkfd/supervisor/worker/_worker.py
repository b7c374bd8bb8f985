"""A worker's side of the supervisor: listeners, readiness, orders, heartbeat."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pyforkfd as ff
from pyforkfd._page import SharedPage, Slot

from ._drive import drive_in_thread, drive_on_loop, say_watchdog
from ._logging import ForkfdHandler, log_uncaught, log_writer, obey
from ._protocol import VARIABLE, Identity, Order, identify, parse

if TYPE_CHECKING:
    import asyncio

__all__ = ["Order", "Worker", "current"]

log = logging.getLogger("pyforkfd.supervisor.worker")

Callback: TypeAlias = Callable[[Order], object]
"""Called for an order, where orders are read: in the loop, the thread, or poll()."""

_INTERVAL = 0.5  # seconds between two beats, at most
_BEATS = 5  # so many in the time after which the worker counts as stale


def current() -> Worker | None:
    """This process as a worker; the same object each time.

    Returns:
        None where no supervisor of ours has started this process: FORKFD_WORKER is not set,
        or was inherited by a program that a worker has started.

    Raises:
        ValueError: FORKFD_WORKER is not as a supervisor writes it.
    """
    # By its text, as a zygote may have asked before it became a worker.
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
            return None  # the descriptors are a worker's, and we only have its environment
    return Worker(identity, channel)


class Worker:
    """A process that a supervisor has started.  Made by :func:`current`.

    Orders are read by one of :meth:`attach`, :meth:`start_thread` and :meth:`poll`; each
    beats the heart too, so a loop that is blocked is seen.  Callbacks run where orders are
    read, in the order in which they were registered.

    Attributes:
        component: the name of its component.
        number: its own, never used twice.
        position: which of its component's workers it is, from 0.
        generation: of its component.
        draining: it is to finish what it has begun, accept nothing new, and end.
        accepting: it is to accept connections: neither paused nor stopped nor draining.
        orphaned: the supervisor has closed its end of the channel.
        interval: seconds between two beats that are soon enough.
        peers: component -> how many of its workers are ready, as far as it was told.
    """

    def __init__(self, identity: Identity, channel: ff.FdChannel | None) -> None:
        """See :func:`current`.

        Args:
            identity: who it is.
            channel: to the supervisor; taken.
        """
        self.component = identity.component
        self.number = identity.worker_id
        self.position = identity.position
        self.generation = identity.generation
        self.draining = False
        self.orphaned = False
        self.peers: dict[str, int] = {}
        self._identity = identity
        self._channel = channel
        self._reasons: set[str] = set()  # why it is not accepting
        self._callbacks: dict[str, list[Callback]] = {}
        self._listeners: dict[str, socket.socket] | None = None
        self._early: list[ff.Received] = []  # came while listeners() waited for its own
        self._slot = _slot(identity)
        self._next_beat = 0.0
        patience = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        self.interval = min(_INTERVAL, patience / _BEATS) if patience > 0 else _INTERVAL
        self._stop: Callable[[], None] | None = None

    @property
    def accepting(self) -> bool:
        """See the class."""
        return not self._reasons

    # Descriptors

    def listeners(self) -> dict[str, socket.socket]:
        """Name -> listening (or datagram) socket, whichever way they were given.

        They belong to this object, which hands out the same ones each time; whoever closes
        one closes this process's copy alone.  The first call takes LISTEN_FDS out of the
        environment, and waits for listeners that come over the channel.

        Raises:
            ValueError, ListenerError: what was announced is not there.
            EOFError: the supervisor went before it sent them.
        """
        if self._listeners is None:
            if self._identity.by_channel:
                self._listeners = self._receive_listeners()
            elif self._identity.listen:
                self._listeners = {n: _adopt(fd) for n, fd in self._identity.listen.items()}
            else:
                self._listeners = {given.name: _adopt(given.fd) for given in ff.listen_fds()}
        return dict(self._listeners)

    def _receive_listeners(self) -> dict[str, socket.socket]:
        assert self._channel is not None, "listeners by channel, and no channel"
        while True:
            message = self._channel.recv()
            order = parse(message)
            if order.name == "listeners":
                with message:
                    return {name: _adopt(fd.detach()) for name, fd in order.fds.items()}
            self._early.append(message)

    # What it says

    def ready(self, status: str | None = None, *, speaks: bool = True) -> None:
        """Say that it serves: over NOTIFY_SOCKET and the channel.

        Args:
            status: a line for people.
            speaks: orders are read from now on, so that the supervisor may give them: a
                worker that speaks is told to drain, one that does not is sent stop_signal.

        Raises:
            OSError: NOTIFY_SOCKET is gone.
        """
        if self._slot is not None:
            self._slot.set_ready(True)
        self.beat()
        if speaks:
            self._tell({"event": "ready"})
        ff.notify(ready=True, status=status)

    def status(self, text: str) -> None:
        """Say in a line how it is."""
        ff.notify(status=text)

    def stopping(self) -> None:
        """Say that it leaves by itself."""
        self._tell({"event": "stopping"})
        ff.notify(stopping=True)

    def send(self, data: Any) -> bool:
        """Send a message of your own to the supervisor; its ``on_message`` gets it.

        Args:
            data: whatever JSON can say.

        Returns:
            False if there is nobody to take it.
        """
        return self._tell({"event": "message", "data": data})

    def _tell(self, body: Mapping[str, Any]) -> bool:
        if self._channel is None:
            return False
        try:
            self._channel.send(json.dumps(body).encode(), timeout=1.0)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            return False  # its end is for the reader to notice
        return True

    def beat(self) -> None:
        """Say that it moves: on its page, which takes nanoseconds, or by WATCHDOG=1.

        As often as you like; over NOTIFY_SOCKET it is said no more often than is needed.
        """
        if self._slot is not None:
            self._slot.beat()
            return
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self.interval / 2
        say_watchdog()

    def count(self, requests: int = 1, errors: int = 0) -> None:
        """Count requests that were answered, and those of them that went wrong."""
        if self._slot is not None:
            self._slot.add(requests, errors)

    # What it is told

    def on(self, order: str, callback: Callback) -> None:
        """Call for an order.

        Args:
            order: "drain", "pause", "resume", "stop_accepting", "resume_accepting",
                "accept" and "return" (shards of another position: ``order.fds``),
                "collect", "peer", "message" (``order.body["data"]``), "orphaned" (the
                supervisor is gone), or any other.
            callback: an exception that it raises is logged.
        """
        self._callbacks.setdefault(order, []).append(callback)

    def fileno(self) -> int:
        """Readable when there are orders, or the supervisor is gone; borrowed.

        Raises:
            ValueError: this worker was given no channel.
        """
        if self._channel is None:
            raise ValueError(f"{self!r} was given no channel")
        return self._channel.fileno()

    @property
    def listens(self) -> bool:
        """More orders can come: there is a channel, and its other end is open."""
        return self._channel is not None and not self.orphaned

    def poll(self, timeout: float = 0.0) -> int:
        """Beat, and follow the orders that have come; for loops of one's own.

        Args:
            timeout: seconds to wait for the first.

        Returns:
            How many there were.
        """
        self.beat()
        done = 0
        while self._early:
            self._take(self._early.pop(0))
            done += 1
        while self._channel is not None and not self.orphaned:
            try:
                message = self._channel.recv(timeout=0.0 if done else timeout)
            except TimeoutError:
                break
            except (EOFError, OSError):
                self._lost()
                break
            self._take(message)
            done += 1
        return done

    def attach(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Read orders and beat on an asyncio loop, until :meth:`detach`.

        Args:
            loop: None: the one that runs.

        Raises:
            RuntimeError: they are read already.
        """
        if loop is None:
            import asyncio  # the worker has it; one that has none need not

            loop = asyncio.get_running_loop()
        self._demand_idle()
        self._stop = drive_on_loop(self, loop, self.interval)

    def start_thread(self) -> None:
        """Read orders in a daemon thread, until :meth:`detach`.

        That thread's heartbeat says that the process runs and the GIL is free, no more.

        Raises:
            RuntimeError: they are read already.
        """
        self._demand_idle()
        self._stop = drive_in_thread(self, self.interval)

    def detach(self) -> None:
        """End what :meth:`attach` or :meth:`start_thread` has begun; once is enough."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def _demand_idle(self) -> None:
        if self._stop is not None:
            raise RuntimeError("orders are read already: detach() first")

    def _lost(self) -> None:
        assert self._channel is not None
        self.orphaned = True
        self._call(Order("orphaned", {"order": "orphaned"}, {}))

    def _take(self, message: ff.Received) -> None:
        with message:
            try:
                order = parse(message)
            except ValueError as error:
                log.warning("the supervisor said what we do not understand: %s", error)
                return
            self._follow(order)
            self._call(order)

    def _follow(self, order: Order) -> None:
        """What needs no help of the application's."""
        match order.name:
            case "drain":
                self.draining = True
                self._reasons.add("drain")
            case "pause" | "stop_accepting":
                self._reasons.add(order.name)
            case "resume":
                self._reasons.discard("pause")
            case "resume_accepting":
                self._reasons.discard("stop_accepting")
            case "collect":
                gc.collect()
            case "peer":
                self.peers[order.body["component"]] = order.body["ready"]
            case "log" | "buffer_logs" | "flush_logs":
                self._obey_log(order)

    def _obey_log(self, order: Order) -> None:
        writer = log_writer()
        if writer is None:
            return
        if (answer := obey(writer, order.body, list(order.fds.values()))) is not None:
            self._tell(answer)

    def _call(self, order: Order) -> None:
        for callback in list(self._callbacks.get(order.name, ())):
            try:
                callback(order)
            except Exception:
                log.exception("order %s: a callback failed", order.name)

    def setup_logging(self, level: int = logging.INFO) -> None:
        """Send records of :mod:`logging` to the supervisor's log, or else to stderr.

        Args:
            level: of the root logger.
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


def _slot(identity: Identity) -> Slot | None:
    if identity.page is None or identity.slot is None:
        return None
    with SharedPage(identity.page) as page:
        return page.slot(identity.slot)
