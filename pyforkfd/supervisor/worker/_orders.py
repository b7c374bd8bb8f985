"""A worker's end of its channel: orders that come, events that go."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import pyforkfd as ff

from ._logging import log_writer, obey
from ._messages import (
    BufferLogs,
    Collect,
    Drain,
    EventMessage,
    FlushLogs,
    Listeners,
    LogSwitched,
    OrderMessage,
    Pause,
    Peer,
    Resume,
    ResumeAccepting,
    StopAccepting,
    SwitchLog,
)
from ._protocol import ORDER_NAMES, Order, ProtocolError, decode_order, encode_event, orphaned
from ._receiving import Refusals, receive

log = logging.getLogger("pyforkfd.supervisor.worker")

Callback: TypeAlias = Callable[[Order], object]
"""Called for an order, where orders are read: in the loop, the thread, or poll()."""

_Arrived: TypeAlias = tuple[ff.Received, OrderMessage, Order]

_SEND_TIMEOUT = 1.0  # seconds to wait while the channel is full


class Orders:
    """The reader of orders, which follows them and calls the application's callbacks.

    Without a channel there are no orders.

    Attributes:
        channel: to the supervisor; owned.
        draining: whether the worker is to leave.
        orphaned: whether the other end of the channel is closed.
        obstacles: kinds of the orders that forbid accepting.
        peers: component -> how many of its workers are ready.
    """

    def __init__(self, channel: ff.FdChannel | None, owner: str) -> None:
        """Take the channel; nothing is read yet.

        Args:
            channel: to the supervisor; taken.
            owner: the worker's name in the log.
        """
        self.channel = channel
        self.draining = False
        self.orphaned = False
        self.obstacles: set[type[OrderMessage]] = set()
        self.peers: dict[str, int] = {}
        self._owner = owner
        self._refusals = Refusals(self._report_refusal)
        self._callbacks: dict[str, list[Callback]] = {}
        self._early: list[_Arrived] = []  # came before the listeners

    @property
    def can_come(self) -> bool:
        """Whether there is a channel whose other end is open."""
        return self.channel is not None and not self.orphaned

    def on(self, name: str, callback: Callback) -> None:
        """Register a callback.

        Raises:
            ValueError: there is no such order.
        """
        if name not in ORDER_NAMES:
            raise ValueError(f"on: no order {name!r} (there are {', '.join(sorted(ORDER_NAMES))})")
        self._callbacks.setdefault(name, []).append(callback)

    def send(self, event: EventMessage) -> bool:
        """Send an event.

        Returns:
            False if there is no channel, its other end is closed, or it was full for a second.

        Raises:
            ValueError: the event is no JSON or too long.
        """
        if self.channel is None:
            return False
        try:
            self.channel.send(encode_event(event), timeout=_SEND_TIMEOUT)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            return False  # read() finds the end of the channel
        return True

    def receive_listeners(self) -> dict[str, int]:
        """Wait for the listeners; orders that come before them are followed later.

        Returns:
            Name -> descriptor, owned by the caller.

        Raises:
            EOFError: the supervisor ended before it sent them.
            PassingError: RLIMIT_NOFILE was reached.
        """
        while True:
            arrived = self._receive(None, lossless=True)
            if arrived is None:
                continue
            received, message, order = arrived
            if isinstance(message, Listeners):
                with received:
                    return {name: fd.detach() for name, fd in order.fds.items()}
            self._early.append(arrived)

    def read(self, timeout: float) -> int:
        """Follow the orders that have come.

        Args:
            timeout: seconds to wait for the first.

        Returns:
            The number of messages read.
        """
        self._refusals.flush(time.monotonic())
        done = 0
        while self._early:
            self._follow(*self._early.pop(0))
            done += 1
        while self.can_come:
            try:
                arrived = self._receive(0.0 if done else timeout)
            except TimeoutError:
                break
            except EOFError:
                self.orphaned = True
                self._call(orphaned())
                break
            done += 1
            if arrived is not None:
                self._follow(*arrived)
        return done

    def _receive(self, timeout: float | None, *, lossless: bool = False) -> _Arrived | None:
        """Receive an order.

        Args:
            timeout: seconds to wait; None: without end.
            lossless: raise the PassingError of a message that lost its descriptors.

        Returns:
            None if the message was refused.

        Raises:
            TimeoutError: no message came in time.
            EOFError: the connection has ended.
        """
        assert self.channel is not None, "orders without a channel"
        received = None
        try:
            received = receive(self.channel, timeout)
            if received is not None:
                return received, *decode_order(received)
        except ProtocolError as error:
            if received is not None:
                received.close()
            if lossless and isinstance(error.__cause__, ff.PassingError):
                raise error.__cause__ from None
            self._refusals.add(str(error), time.monotonic())
            return None
        except TimeoutError:
            raise
        except OSError as error:
            log.error("%s: channel: %s: no order is read any more", self._owner, error)
        self._refusals.flush(time.monotonic(), end=True)
        raise EOFError("the supervisor has closed the channel")

    def _report_refusal(self, text: str) -> None:
        log.warning("%s: order refused: %s", self._owner, text)

    def _follow(self, received: ff.Received, message: OrderMessage, order: Order) -> None:
        """Do the worker's own part of an order, then call back."""
        with received:
            match message:
                case Drain():
                    self.draining = True
                    self.obstacles.add(Drain)
                case Pause() | StopAccepting():
                    self.obstacles.add(type(message))
                case Resume():
                    self.obstacles.discard(Pause)
                case ResumeAccepting():
                    self.obstacles.discard(StopAccepting)
                case Collect():
                    gc.collect()
                case Peer(component, ready):
                    self.peers[component] = ready
                case SwitchLog() | BufferLogs() | FlushLogs():
                    self._follow_log(message, order)
            self._call(order)

    def _follow_log(self, message: OrderMessage, order: Order) -> None:
        try:
            writer = log_writer()
            if writer is None:
                return
            obey(writer, order.body, list(order.fds.values()))
        except (OSError, ValueError) as error:
            log.error("%s: order %s: %s", self._owner, order.name, error)
            return
        if isinstance(message, SwitchLog):
            self.send(LogSwitched(message.turn))

    def _call(self, order: Order) -> None:
        for callback in list(self._callbacks.get(order.name, ())):
            try:
                callback(order)
            except Exception:
                log.exception("%s: order %s: a callback failed", self._owner, order.name)
