"""Who reads a worker's orders and beats for it: an asyncio loop, or a thread."""

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
    """A worker, as its drivers see it."""

    @property
    def listens(self) -> bool: ...

    def fileno(self) -> int: ...

    def poll(self, timeout: float = 0.0) -> int: ...


def drive_on_loop(
    worker: Driven, loop: asyncio.AbstractEventLoop, interval: float
) -> Callable[[], None]:
    """Poll when there is something to read, and every ``interval`` seconds for the beat.

    Returns:
        What ends it; on the loop's thread.
    """
    _show_stacks()
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
            loop.remove_reader(watched)  # its end stays readable
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
    """Poll in a daemon thread.

    Returns:
        What ends it, and waits for its end; also in that very thread.
    """
    _show_stacks()
    wake = ff.Fd(os.eventfd(0, os.EFD_CLOEXEC))
    waiting = select.poll()
    waiting.register(wake, select.POLLIN)
    if worker.listens:
        waiting.register(worker, select.POLLIN)

    def work() -> None:
        while True:
            worker.poll()
            if not worker.listens:  # its end stays readable
                _forget(waiting, worker)
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


def say_watchdog() -> None:
    """WATCHDOG=1.  Never waits, unlike notify(): a supervisor that is held up holds nobody up."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(b"WATCHDOG=1", name)
    except OSError:
        pass  # its queue is full, or there is no supervisor: the next will tell


def _forget(waiting: select.poll, worker: Driven) -> None:
    try:
        waiting.unregister(worker.fileno())
    except (KeyError, ValueError):
        pass  # it was forgotten already, or never had a channel


def _show_stacks() -> None:
    """So that dump_signal shows them: a zygote's worker began without PYTHONFAULTHANDLER."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
