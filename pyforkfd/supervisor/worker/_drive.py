"""The two drivers that poll a worker: an asyncio loop, or a thread."""

from __future__ import annotations

import faulthandler
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import pyforkfd as ff

if TYPE_CHECKING:
    import asyncio


class Driven(Protocol):
    """A worker, as its drivers use it."""

    @property
    def listens(self) -> bool: ...

    def fileno(self) -> int: ...

    def poll(self, timeout: float = 0.0) -> int: ...


def drive_on_loop(
    worker: Driven, loop: asyncio.AbstractEventLoop, interval: float
) -> Callable[[], None]:
    """Poll a worker when its channel is readable, and at intervals for its heartbeat.

    Args:
        worker: the worker.
        loop: calls its ``poll()``.
        interval: seconds between two polls.

    Returns:
        A function that ends it; for the loop's thread.
    """
    _enable_faulthandler()
    watched = worker.fileno() if worker.listens else None
    timer: asyncio.TimerHandle | None = None

    def turn() -> None:
        nonlocal timer
        worker.poll()
        timer = loop.call_later(interval, turn)

    def readable() -> None:
        nonlocal watched
        worker.poll()
        if not worker.listens and watched is not None:
            loop.remove_reader(watched)  # a channel at its end stays readable
            watched = None

    def stop() -> None:
        if timer is not None:
            timer.cancel()
        if watched is not None:
            loop.remove_reader(watched)

    if watched is not None:
        loop.add_reader(watched, readable)
    turn()
    return stop


def drive_in_thread(worker: Driven, interval: float) -> Callable[[], None]:
    """Poll a worker in a daemon thread.

    Args:
        worker: the worker.
        interval: seconds between two polls.

    Returns:
        A function that ends the thread and waits for its end; that thread may call it too.
    """
    _enable_faulthandler()
    wake = ff.Fd(os.eventfd(0, os.EFD_CLOEXEC))
    waiting = select.poll()
    waiting.register(wake, select.POLLIN)
    if worker.listens:
        waiting.register(worker, select.POLLIN)

    def work() -> None:
        while True:
            worker.poll()
            if not worker.listens:  # a channel at its end stays readable
                _unregister(waiting, worker)
            if any(fd == wake.fileno() for fd, _ in waiting.poll(interval * 1000)):
                return

    thread = threading.Thread(target=work, name="forkfd-worker", daemon=True)

    def stop() -> None:
        os.eventfd_write(wake.fileno(), 1)
        if threading.current_thread() is not thread:
            thread.join()
            wake.close()

    thread.start()
    return stop


def send_watchdog() -> None:
    """Send WATCHDOG=1 without ever waiting, unlike notify().

    A supervisor that is held up must not hold its workers up.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(b"WATCHDOG=1", name)
    except OSError:
        pass  # its queue is full, or there is no supervisor: the next beat is as good


def _unregister(waiting: select.poll, worker: Driven) -> None:
    try:
        waiting.unregister(worker.fileno())
    except (KeyError, ValueError):
        pass  # it was removed already, or never had a channel


def _enable_faulthandler() -> None:
    """Let dump_signal show stacks: a zygote's worker began without PYTHONFAULTHANDLER."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
