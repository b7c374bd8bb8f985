"""A child, and its pidfd."""

from __future__ import annotations

import functools
import os
import signal
import time
import warnings
from collections.abc import Sequence, Set
from io import BufferedReader, BufferedWriter
from resource import struct_rusage
from types import TracebackType

from . import _core
from ._types import Backend, ExitStatus, StrPath

TRACER_PAUSE = 0.01
"""Seconds between two tries to reap a child that has ended and whose tracer has not reaped it."""

_CLD_EXITED, _CLD_DUMPED = 1, 3
_forgotten: list[int] = []  # pidfds of children that still ran when their Process was dropped


def reap_forgotten() -> None:
    """Reap the children without a Process that have ended since."""
    for pidfd in _forgotten[:]:
        if _core.reap(pidfd) is not None:
            try:
                _forgotten.remove(pidfd)
            except ValueError:
                continue  # another thread was faster
            os.close(pidfd)


def forget(pidfd: int) -> None:
    """Register a child that has no Process any more, to be reaped later; take its pidfd."""
    _watch_forks()
    _forgotten.append(pidfd)


@functools.cache  # a hook that has nothing to do costs every fork page faults all the same
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_leave_to_parent)


def _leave_to_parent() -> None:
    """Drop the list in the child of a fork: it cannot reap its parent's children."""
    while _forgotten:
        os.close(_forgotten.pop())


class Process(_core.ProcessBase):
    """A started child.  Made by :func:`spawn`, :meth:`Command.spawn` and :func:`fork`.

    Signals and waits go through the pidfd, which never refers to another process
    (pidfd_open(2)); the pid is for people.  Safe to use from many threads.  As a context
    manager it closes its pipes, waits for the child and closes the pidfd.

    Attributes:
        args: the arguments of the child, as given; empty after a fork.
        pid: the child's number, in our pid namespace.
        backend: the way in which the child was started, see :data:`Backend`.
        pipes: our ends of the child's pipes, by the child's number; owned by this object.
    """

    __slots__ = ("__weakref__",)

    def __init__(
        self,
        args: Sequence[StrPath],
        pid: int,
        pidfd: int,
        backend: Backend,
        ends: dict[int, int],
        writable: Set[int],
    ) -> None:
        self._begin(args, pid, pidfd, backend)
        if not ends:
            return
        for target, fd in ends.items():
            self.pipes[target] = os.fdopen(fd, "wb") if target in writable else os.fdopen(fd, "rb")

    def fileno(self) -> int:
        """Return the pidfd, for select and epoll: readable once the child has ended."""
        return self.pidfd

    @property
    def stdin(self) -> BufferedWriter | None:
        """Our end of ``fds={0: PIPE}``."""
        pipe = self.pipes.get(0)
        return pipe if isinstance(pipe, BufferedWriter) else None

    @property
    def stdout(self) -> BufferedReader | None:
        """Our end of ``fds={1: PIPE}``."""
        pipe = self.pipes.get(1)
        return pipe if isinstance(pipe, BufferedReader) else None

    @property
    def stderr(self) -> BufferedReader | None:
        """Our end of ``fds={2: PIPE}``."""
        pipe = self.pipes.get(2)
        return pipe if isinstance(pipe, BufferedReader) else None

    @property
    def status(self) -> ExitStatus | None:
        """The exit status if it is known already; the child is not polled."""
        return self._status

    @property
    def returncode(self) -> int | None:
        """The return code as subprocess has it; None until the end of the child is known."""
        return None if self._status is None else self._status.returncode

    def poll(self) -> ExitStatus | None:
        """Return the exit status, or None while the child runs; never block."""
        if self._status is not None:
            return self._status
        if self.pidfd >= 0:
            self._demand_own()
        if (reaped := self._reap()) is not None:
            self._status = exit_status(reaped)
        return self._status

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait for the end of the child, with the GIL released.

        In one waitid(2) without a time-out, else in poll(2) on the pidfd.

        Args:
            timeout: seconds; None: without end.

        Returns:
            The exit status.

        Raises:
            TimeoutError: the child still runs.
            ChildProcessError: it is a child of another process (this one was forked since).
            ValueError: the pidfd is closed.
        """
        if self._status is not None:
            return self._status
        if self.pidfd < 0:
            raise ValueError(f"wait for pid {self.pid}: its pidfd is closed")
        self._demand_own()
        if timeout is None:
            if (reaped := self._wait()) is None:
                raise ValueError(f"wait for pid {self.pid}: its pidfd is closed")
            ended = exit_status(reaped)
            if self._status is None:  # another thread that waits may have set it
                self._status = ended
            return self._status
        end = time.monotonic() + timeout
        if not _core.wait_pidfd(self.pidfd, timeout):
            raise TimeoutError(f"pid {self.pid} still runs after {timeout} s")
        while (status := self.poll()) is None:
            # Its tracer reaps it first, ptrace(2), and nothing announces that it has.
            if time.monotonic() >= end:
                raise TimeoutError(f"pid {self.pid} has ended, and its tracer has not reaped it")
            time.sleep(TRACER_PAUSE)
        return status

    async def wait_async(self) -> ExitStatus:
        """Wait on the running asyncio loop, without a thread, a child watcher or SIGCHLD."""
        if (status := self.poll()) is not None:
            return status
        if self.pidfd < 0:
            raise ValueError(f"wait for pid {self.pid}: its pidfd is closed")
        import asyncio  # here: a third of what importing us would cost

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            if not ended.done():
                ended.set_result(None)

        # A number of its own, since a loop has one reader per number and many may wait.
        pidfd = os.dup(self.pidfd)
        try:
            loop.add_reader(pidfd, readable)
            try:
                await ended
            finally:
                loop.remove_reader(pidfd)
        finally:
            os.close(pidfd)
        while (status := self.poll()) is None:  # its tracer reaps it first
            await asyncio.sleep(TRACER_PAUSE)
        return status

    def send_signal(self, signum: int) -> None:
        """Send a signal through the pidfd; do nothing if the child is known to have ended."""
        if self.poll() is not None:
            return
        if self.pidfd < 0:
            raise ValueError(f"signal to pid {self.pid}: its pidfd is closed")
        try:
            _core.send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass  # it has ended since, and another has reaped it

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close_pipes(self) -> None:
        """Close our pipe ends: a child that reads to the end of its input sees it."""
        for pipe in self.pipes.values():
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # buffered for a child that no longer reads

    def close(self) -> None:
        """Close our pipe ends and the pidfd; the child is neither ended nor waited for."""
        self.close_pipes()
        if (pidfd := self._take_pidfd()) >= 0:
            os.close(pidfd)

    def _demand_own(self) -> None:
        if os.getpid() != self._owner:
            raise ChildProcessError(
                f"pid {self.pid} is a child of process {self._owner}, not of {os.getpid()}"
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_pipes()
        try:
            self.wait()
        finally:
            self.close()

    def _dropped(self) -> None:
        if self._status is None and os.getpid() == self._owner and self.poll() is None:
            warnings.warn(
                f"child {self.pid} ({_display(self.args) or 'forked'}) still runs and is not "
                "waited for: call wait() or use the Process as a context manager",
                ResourceWarning,
                source=self,
            )
            forget(os.dup(self.pidfd))
        self.close()

    def __repr__(self) -> str:
        state = "running" if self._status is None else str(self._status)
        args = f" {_display(self.args)}" if self.args else ""
        return f"<Process {self.pid}{args}: {state}>"


def _display(args: Sequence[StrPath]) -> str:
    return " ".join(os.fsdecode(arg) for arg in args)


def exit_status(reaped: tuple[bool, int, int, tuple[float, ...] | None]) -> ExitStatus:
    """Return how a child ended, from what the core's ``reap`` returned."""
    known, code, status, usage = reaped
    if not known:
        return ExitStatus(code=None, signal=None, lost=True)
    rusage = None if usage is None else struct_rusage(usage)
    if code == _CLD_EXITED:
        return ExitStatus(code=status, signal=None, rusage=rusage)
    return ExitStatus(code=None, signal=status, core_dumped=code == _CLD_DUMPED, rusage=rusage)
