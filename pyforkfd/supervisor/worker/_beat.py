"""Heartbeats of a worker: from its own loop or threads, so that one that is stuck is seen.

A worker with a plain loop needs none of this: ``slot.beat()`` in each turn.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pyforkfd._page import Slot

if TYPE_CHECKING:
    import asyncio

INTERVAL = 0.5
"""Seconds between two beats: ten fit into the five after which silence counts."""


class LoopBeat:
    """Beats from an asyncio loop's own timer: a loop that is blocked does not.

    Made by :func:`beat_asyncio`.  In a child of fork it ends by itself.
    """

    def __init__(self, slot: Slot, interval: float, loop: asyncio.AbstractEventLoop) -> None:
        self._slot = slot
        self._interval = interval
        self._loop = loop
        self._owner = os.getpid()
        self._timer: asyncio.TimerHandle | None = None
        self._turn()

    def _turn(self) -> None:
        if os.getpid() != self._owner:
            return  # the slot is the parent's, and it may be stuck
        self._slot.beat()
        self._timer = self._loop.call_later(self._interval, self._turn)

    def stop(self) -> None:
        """Beat no more; on the loop's thread.  Once stopped, do nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def beat_asyncio(
    slot: Slot, interval: float = INTERVAL, *, loop: asyncio.AbstractEventLoop | None = None
) -> LoopBeat:
    """Beat now, and again as long as the loop turns.

    Args:
        slot: the worker's.
        interval: seconds between two beats.
        loop: None: the one that runs this.  Another one must not run yet, or on this thread.

    Raises:
        ValueError: the interval is not positive.
        RuntimeError: no loop runs here.
    """
    _demand_positive("interval", interval)
    if loop is None:
        import asyncio  # the worker has it; the supervisor need not

        loop = asyncio.get_running_loop()
    return LoopBeat(slot, interval, loop)


class Member:
    """A thread's part in :class:`ThreadBeats`, which keeps its time.

    A context manager that leaves at the end.  All but :meth:`leave` are for its own thread.
    """

    __slots__ = ("_beats", "_bound", "_until", "thread")

    def __init__(self, beats: ThreadBeats, bound: float, thread: threading.Thread) -> None:
        self._beats = beats
        self._bound = bound
        self._until: float | None = time.monotonic() + bound  # None: it waits for work
        self.thread = thread

    def beat(self) -> None:
        """It moves; its bound begins anew."""
        self._until = time.monotonic() + self._bound

    def idle(self) -> None:
        """It waits for work, for as long as there is none; the next :meth:`beat` ends that."""
        self._until = None

    def leave(self) -> None:
        """It is not watched any more; once it has left, do nothing."""
        self._beats._leave(self)

    def alive(self, now: float) -> bool:
        """Its thread is there, and within its bound."""
        until = self._until  # once: its thread may change it meanwhile
        return self.thread.is_alive() and (until is None or now <= until)

    def __enter__(self) -> Member:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()


class ThreadBeats:
    """Beats for a pool of threads, as long as every one of them keeps its bound.

    A thread of its own, ``forkfd-beat``, looks and beats; a GIL that is held stops it too.
    A member that ends without leaving is as stuck as one that exceeds its bound.  In a child
    of fork nothing beats, and :meth:`join` counts for nobody.  A context manager.

    Args:
        slot: the worker's.
        interval: seconds between two looks.

    Raises:
        ValueError: the interval is not positive.
        RuntimeError: there can be no more threads.
    """

    def __init__(self, slot: Slot, interval: float = INTERVAL) -> None:
        _demand_positive("interval", interval)
        self._slot = slot
        self._interval = interval
        # A dictionary and no set: it is copied without a lock, by one operation.
        self._members: dict[Member, None] = {}
        self._owner = os.getpid()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="forkfd-beat", daemon=True)
        self._thread.start()

    def join(self, bound: float) -> Member:
        """Watch the calling thread from now on.

        Args:
            bound: seconds that it may take between two of its beats.

        Raises:
            ValueError: the bound is not positive.
        """
        _demand_positive("bound", bound)
        member = Member(self, bound, threading.current_thread())
        self._members[member] = None
        return member

    def late(self) -> list[threading.Thread]:
        """The threads that are not within their bound now; none: the slot is beaten."""
        now = time.monotonic()
        return [member.thread for member in list(self._members) if not member.alive(now)]

    def stop(self) -> None:
        """Beat no more, and wait for the thread's end; once stopped, do nothing."""
        if os.getpid() != self._owner:
            return  # it is not in this process
        self._stopping.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _leave(self, member: Member) -> None:
        self._members.pop(member, None)

    def _watch(self) -> None:
        while True:
            if not self.late():
                self._slot.beat()
            if self._stopping.wait(self._interval):
                return

    def __enter__(self) -> ThreadBeats:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def beat_threads(slot: Slot, interval: float = INTERVAL) -> ThreadBeats:
    """A :class:`ThreadBeats` that has begun: ``with beats.join(bound=5.0) as member``."""
    return ThreadBeats(slot, interval)


def _demand_positive(name: str, value: float) -> None:
    if not 0 < value < 1e9:
        raise ValueError(f"heartbeat: {name}={value} is not a positive number")
