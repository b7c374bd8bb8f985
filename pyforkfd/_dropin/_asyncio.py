"""Children on asyncio, ended by their pidfd: no child watcher, no thread, no SIGCHLD."""

from __future__ import annotations

import asyncio
import os
from asyncio.base_subprocess import BaseSubprocessTransport
from asyncio.subprocess import Process, SubprocessStreamProtocol
from typing import Any, Unpack

from pyforkfd._fd import Fd
from pyforkfd._types import StrPath

from ._popen import File, Popen, StartOptions


class _Transport(BaseSubprocessTransport):
    """A transport of asyncio's that starts, signals and awaits the child by our engine."""

    _loop: asyncio.AbstractEventLoop
    _proc: Any
    _ended: Fd | None = None

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
        self._ended.close()
        self._ended = None
        self._process_exited(self._proc.poll())

    def send_signal(self, signal: int) -> None:
        self._check_proc()
        self._proc.send_signal(signal)


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
        transport.close()
        await transport._wait()
        raise
    return Process(transport, protocol, loop)
