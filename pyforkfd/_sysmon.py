"""A thread that monitors the process: leaking descriptors, a stalled GIL or loop."""

from __future__ import annotations

import atexit
import faulthandler
import functools
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from . import _core
from ._checks import as_fd
from ._sysmon_events import BoundExceeded, FdGrowth, GilStalled, LoopStalled, SysmonEvent
from ._types import HasFileno

if TYPE_CHECKING:
    import asyncio


def _this_loop() -> asyncio.AbstractEventLoop:
    import asyncio  # here: a third of what importing us would cost

    return asyncio.get_running_loop()


class _Watched:
    """A loop and its slot in the monitor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slot: int) -> None:
        self.loop = loop
        self.slot = slot
        self.thread: int | None = None  # known after its first reply
        self.open = False  # a request has no reply yet


class Sysmon:
    """A monitor of the process, in a native thread that needs no GIL, which calls back.

    A context manager; or :meth:`start` and :meth:`stop`.  There may be several.  Each has a
    native thread, ``forkfd-sysmon``, which polls, and a Python thread, ``forkfd-events``,
    which proves that the GIL moves by taking it, and calls back.  By default both together
    take less than 0.1 % of a processor.

    A stall is found by requests: every half bound the Python thread is woken and must take
    the GIL, and each watched loop must run a callback.  So an idle main thread or loop is not
    stalled, a stall 1.5 times as long as the bound is found for certain, and one shorter than
    the bound never.  While a callback of yours runs, no request is made.  Time in which the
    monitor itself could not run (SIGSTOP) does not count.  On free-threaded Python, without a
    GIL, it finds the time in which all threads are stopped.

    After os.fork the child has neither thread, unless ``restart_after_fork``.  Python 3.12
    and later warn at os.fork that the process has threads, and count these; the native one
    takes no lock and allocates nothing, so it leaves nothing locked in the child.
    At exit it is stopped, without waiting for a callback that still runs.

    Args:
        on_event: called on the Python thread with each :data:`SysmonEvent`.  Its exceptions
            go to sys.unraisablehook.
        interval: seconds between two polls while a reply is outstanding; a stall is found
            this soon after its bound.
        gil_stall: bound in seconds for the GIL; None: not watched.
        loop_stall: the same for loops given to :meth:`watch_loop`.
        fd_growth: descriptors that may be gained per second; None: not watched.  Counted
            once a second.
        bounds: gauge -> the highest value that is right: ``descriptors``, ``threads``,
            ``children`` (started by us, and not yet reaped), and ``epoll_drift`` (registrations
            of :class:`ForkSafeSelector` that differ from the kernel's watch set, at least
            so many).
        dump: borrowed descriptor, or object with one, to which the stacks of all threads are
            written as soon as the GIL or a loop exceeds its bound, by faulthandler, without
            the GIL, in a copy of the process, where no other thread runs.  It must stay open.
        dump_signal: the signal by which faulthandler is called, faulthandler.register(); it is
            sent to that copy only.  None: the highest real-time signal without a handler.
        summary: seconds between two lines of FORKFD_DEBUG's ``sched``; None: no lines.
        restart_after_fork: start anew in the child of os.fork.

    Raises:
        ValueError: a time or rate is not positive, a bound is negative, or a gauge or signal
            does not exist.
    """

    def __init__(
        self,
        on_event: Callable[[SysmonEvent], object] | None = None,
        *,
        interval: float = 0.02,
        gil_stall: float | None = 1.0,
        loop_stall: float | None = 1.0,
        fd_growth: float | None = 100.0,
        bounds: Mapping[str, int] | None = None,
        dump: int | HasFileno | None = None,
        dump_signal: int | None = None,
        summary: float | None = None,
        restart_after_fork: bool = False,
    ) -> None:
        named = {
            "interval": interval,
            "gil_stall": gil_stall,
            "loop_stall": loop_stall,
            "fd_growth": fd_growth,
            "summary": summary,
        }
        for name, value in named.items():
            if value is not None and not 0 < value < 1e9:
                raise ValueError(f"Sysmon: {name}={value} is not a positive number")
        known = _core.gauges()
        for gauge, bound in (bounds or {}).items():
            if gauge not in known:
                raise ValueError(f"Sysmon: no gauge {gauge!r}; there are {', '.join(known)}")
            if bound < 0:
                raise ValueError(f"Sysmon: bounds: {gauge}={bound} is negative")
        if dump_signal is not None and (
            not 1 <= dump_signal <= 64 or dump_signal in (signal.SIGKILL, signal.SIGSTOP)
        ):
            raise ValueError(f"Sysmon: dump_signal={dump_signal} cannot be handled")
        self._on_event = on_event
        self._numbers = {name: value or 0.0 for name, value in named.items()}
        self._bounds = {known.index(gauge): bound for gauge, bound in (bounds or {}).items()}
        self._gauges = known
        self._dump = None if dump is None else as_fd(dump, "Sysmon: dump")
        self._wanted_signal = dump_signal
        self._signal = 0  # registered with faulthandler
        self._restart = restart_after_fork
        self._lock = threading.Lock()  # of the fields below; not held during a wait
        self._monitor: _core.Monitor | None = None
        self._helper: threading.Thread | None = None
        self._loops: list[_Watched] = []

    def start(self) -> None:
        """Start both threads; do nothing if they run.

        Raises:
            OSError: no native thread can be started.
            RuntimeError: no Python thread can be started; or no signal is left for ``dump``.
        """
        with self._lock:
            if self._monitor is not None:
                return
            self._register_dump()
            try:
                monitor = _core.Monitor(
                    interval=self._numbers["interval"],
                    gil_stall=self._numbers["gil_stall"],
                    loop_stall=self._numbers["loop_stall"],
                    fd_growth=self._numbers["fd_growth"],
                    summary=self._numbers["summary"],
                    bounds=self._bounds,
                    dump_signal=self._signal,
                )
                helper = threading.Thread(
                    target=self._help, args=(monitor,), name="forkfd-events", daemon=True
                )
                helper.start()
                try:
                    monitor.start()
                except BaseException:
                    monitor.stop()  # the helper's end
                    raise
            except BaseException:
                self._unregister_dump()
                raise
            self._monitor, self._helper = monitor, helper
        _watch_forks()
        _running.add(self)

    def stop(self) -> None:
        """End both threads, and wait for them: no callback runs after this.

        In a callback this does not wait, and that callback is the last one.  Do nothing if
        the threads do not run; start() begins anew.
        """
        self._stop(wait_for_callback=True)

    def watch_loop(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Watch a loop as long as it runs, until it is closed.

        Args:
            loop: the loop; None: the running one.

        Raises:
            RuntimeError: no loop runs here, or 16 loops are watched already.
        """
        loop = _this_loop() if loop is None else loop
        with self._lock:
            if any(watched.loop is loop for watched in self._loops):
                return
            slots = set(range(_core.MAX_LOOPS)) - {watched.slot for watched in self._loops}
            if not slots:
                raise RuntimeError(f"watch_loop: {_core.MAX_LOOPS} loops are watched already")
            self._loops.append(_Watched(loop, min(slots)))
        if self._numbers["summary"] == 0.0:
            for other in list(_running):
                if other._numbers["summary"] != 0.0:
                    other.watch_loop(loop)  # so that the lines of sched= include it

    def unwatch_loop(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Stop watching a loop; do nothing if it is not watched.

        Args:
            loop: the loop; None: the running one.
        """
        loop = _this_loop() if loop is None else loop
        with self._lock:
            for watched in [w for w in self._loops if w.loop is loop]:
                self._forget(watched)

    def __enter__(self) -> Sysmon:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _register_dump(self) -> None:
        if self._dump is None:
            return
        number = self._wanted_signal or _core.unused_signal()
        if number == 0:
            raise RuntimeError("Sysmon: dump: every real-time signal is handled already")
        faulthandler.register(number, file=self._dump, all_threads=True)
        self._signal = number

    def _unregister_dump(self) -> None:
        if self._signal:
            faulthandler.unregister(self._signal)
            self._signal = 0

    def _stop(self, wait_for_callback: bool) -> None:
        with self._lock:
            monitor, helper = self._monitor, self._helper
            self._monitor = self._helper = None
        if monitor is None or helper is None:
            return
        _running.discard(self)
        monitor.stop()
        self._unregister_dump()
        with self._lock:
            for watched in self._loops:
                watched.open = False
        if helper is threading.current_thread():
            return
        if wait_for_callback or not monitor.stopped_at_work:
            helper.join()

    def _help(self, monitor: _core.Monitor) -> None:
        """Run the Python thread, until the monitor is stopped."""
        _core.name_this_thread("forkfd-events")
        while (event_values := monitor.next()) is not None:
            self._poll_loops(monitor)
            if self._on_event is None or (event := self._event(*event_values)) is None:
                continue
            _core.call(self._on_event, event)

    def _event(self, kind: str, index: int, value: int, ns: int) -> SysmonEvent | None:
        seconds = ns / 1e9
        if kind == "gil_stalled":
            return GilStalled(seconds=seconds)
        if kind == "fd_growth":
            return FdGrowth(descriptors=value, gained=index, seconds=seconds)
        if kind == "gauge":
            return BoundExceeded(gauge=self._gauges[index], value=value, bound=self._bounds[index])
        if kind == "loop_stalled":
            for watched in self._watched():
                if watched.slot == index:
                    stack = _stack(watched)
                    return LoopStalled(loop=watched.loop, seconds=seconds, stack=stack)
        return None

    def _watched(self) -> list[_Watched]:
        with self._lock:
            return self._loops[:]

    def _poll_loops(self, monitor: _core.Monitor) -> None:
        for watched in self._watched():
            if watched.loop.is_closed():
                with self._lock:
                    self._forget(watched)
            elif not watched.loop.is_running():
                monitor.loop_forgotten(watched.slot)
                watched.open = False  # the reply comes when it runs again
            elif not watched.open:
                self._request(monitor, watched)

    def _request(self, monitor: _core.Monitor, watched: _Watched) -> None:
        def reply() -> None:
            watched.thread = threading.get_ident()
            watched.open = False
            monitor.loop_replied(watched.slot)

        watched.open = True
        monitor.loop_probed(watched.slot)
        try:
            watched.loop.call_soon_threadsafe(reply)
        except RuntimeError:  # closed since
            monitor.loop_forgotten(watched.slot)
            watched.open = False

    def _forget(self, watched: _Watched) -> None:
        if watched in self._loops:
            self._loops.remove(watched)
            if self._monitor is not None:
                self._monitor.loop_forgotten(watched.slot)

    def _forked(self) -> None:
        """Reset the child of os.fork: it has no threads, and another may hold the lock."""
        self._lock = threading.Lock()
        self._monitor = self._helper = None
        self._unregister_dump()
        for watched in self._loops:
            watched.open = False
        if self._restart:
            self.start()


def _stack(watched: _Watched) -> tuple[traceback.FrameSummary, ...]:
    frame = sys._current_frames().get(watched.thread or 0)
    if frame is None or not watched.open:
        return ()
    return tuple(reversed(traceback.StackSummary.extract(traceback.walk_stack(frame))))


_running: weakref.WeakSet[Sysmon] = weakref.WeakSet()


def _at_exit() -> None:
    for sysmon in list(_running):
        sysmon._stop(wait_for_callback=False)


def _in_child() -> None:
    running = list(_running)
    _running.clear()
    for sysmon in running:
        sysmon._forked()


atexit.register(_at_exit)


@functools.cache  # a hook that has nothing to do costs every fork page faults all the same
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_in_child)
