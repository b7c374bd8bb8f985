"""Children on asyncio, ended by their pidfd: no child watcher, no thread, no SIGCHLD."""

from __future__ import annotations

import asyncio
import os
from asyncio.base_subprocess import BaseSubprocessTransport
from asyncio.subprocess import Process, SubprocessStreamProtocol
from typing import Any, Unpack

from pyforkfd._fd import Fd
from pyforkfd._process import TRACER_PAUSE
from pyforkfd._types import StrPath

from ._popen import File, Popen, StartOptions


class _Transport(BaseSubprocessTransport):
    """A transport of asyncio's that starts, signals and awaits the child by our engine."""

    _loop: asyncio.AbstractEventLoop
    _proc: Any
    _ended: Fd | None = None
    _pipes: dict[int, Any]
    _pending_calls: Any
    _protocol: Any
    _finished: bool
    _connecting: asyncio.Task[None]
    _abandoned = False

    def _start(
        self,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        **kwargs: Any,
    ) -> None:
        child = Popen[bytes](
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, bufsize=bufsize, **kwargs
        )
        self._proc = child
        # A number of its own: Popen closes the pidfd when the child is reaped.
        self._ended = Fd(os.dup(child.pidfd))
        self._loop.add_reader(self._ended.fileno(), self._child_ended)

    def _child_ended(self) -> None:
        if self._ended is None:
            return
        self._loop.remove_reader(self._ended.fileno())
        if (code := self._proc.poll()) is None:  # its tracer reaps it first
            self._loop.call_later(TRACER_PAUSE, self._child_ended)
            return
        self._ended.close()
        self._ended = None
        self._process_exited(code)

    def _connect_pipes(self, waiter: Any) -> Any:
        # In a task of which we know; the base class starts one, and forgets it.
        self._connecting = self._loop.create_task(super()._connect_pipes(waiter))
        self._connecting.add_done_callback(lambda _: waiter.done() or waiter.cancel())
        return _nothing()

    async def abandon(self) -> None:
        """End the child and everything that its start has begun."""
        self._abandoned = True
        self.close()
        self._connecting.cancel()
        await asyncio.wait([self._connecting])
        self._abandon_pipes()
        await self._wait()

    def _abandon_pipes(self) -> None:
        """Close the pipes that were not connected, so that the transport can end without them.

        Without this the end of a child whose start was cancelled is never announced
        (python/cpython#133536).  Does nothing once all of them are connected.
        """
        pending, self._pending_calls = self._pending_calls, None
        if pending is None:
            return
        ours = (self._proc.stdin, self._proc.stdout, self._proc.stderr)
        for fd, pipe in list(self._pipes.items()):
            if pipe is None:
                del self._pipes[fd]
                ours[fd].close()
        self._loop.call_soon(self._protocol.connection_made, self)
        for callback, data in pending:
            self._loop.call_soon(callback, *data)
        self._try_finish()

    def _pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        # The protocol has never heard of a pipe that is abandoned while it is connected.
        unknown = self._abandoned and self._pipes.get(fd) is None
        if not unknown and not self._finished:
            super()._pipe_connection_lost(fd, exc)

    def _try_finish(self) -> None:
        if not self._finished:
            super()._try_finish()

    def send_signal(self, signal: int) -> None:
        self._check_proc()
        self._proc.send_signal(signal)


async def _nothing() -> None:
    pass


async def create_subprocess_exec(
    program: StrPath,
    *args: StrPath,
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    limit: int = 2**16,
    **options: Unpack[StartOptions],
) -> Process:
    """Start a child as :func:`asyncio.create_subprocess_exec` does, on our engine.

    The running loop watches the child's pidfd, on every Python: there is neither a thread for
    each child (3.11) nor a child watcher.  Works on every loop that has ``add_reader``.

    Args:
        program: the program.
        args: its arguments.
        stdin: None, asyncio.subprocess.PIPE, DEVNULL, or borrowed: a descriptor or a file.
        stdout: the same.
        stderr: the same, or asyncio.subprocess.STDOUT.
        limit: size of the buffers of stdout and stderr, in bytes.
        options: as :class:`pyforkfd.subprocess.Popen`, but for text mode.  Our ends of pipes
            of ``fds`` are in ``process._transport.get_extra_info("subprocess").pipes``.

    Returns:
        asyncio's own Process.

    Raises:
        OSError: as in :class:`pyforkfd.subprocess.Popen`.
    """
    loop = asyncio.get_running_loop()
    protocol = SubprocessStreamProtocol(limit=limit, loop=loop)
    waiter = loop.create_future()
    make: Any = _Transport  # whose types are narrower than what it takes
    transport = make(
        loop, protocol, (program, *args), False, stdin, stdout, stderr, 0, waiter=waiter, **options
    )
    try:
        await waiter
    except BaseException:  # a pipe could not be connected, or the task is cancelled
        await transport.abandon()
        raise
    return Process(transport, protocol, loop)
