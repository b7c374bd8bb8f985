"""Children on asyncio, ended by their pidfd: no child watcher, no thread, no SIGCHLD."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process, SubprocessStreamProtocol
from typing import Any, Unpack

from pyforkfd._types import StrPath

from ._popen import File, Popen, StartOptions
from ._transport import Transport

_UNLIMITED = sys.maxsize // 4


class _Process(Process):
    """asyncio's own, which reads both outputs without a task for each."""

    _transport: Transport
    _loop: asyncio.AbstractEventLoop

    async def communicate(self, input: Any = None) -> tuple[Any, Any]:  # noqa: A002  (asyncio's)
        readers = [reader for reader in (self.stdout, self.stderr) if reader is not None]
        plain = input is None and self.stdin is None and not self._loop.get_debug()
        if not plain or not all(_is_at_rest(reader) for reader in readers):
            return await super().communicate(input)
        limits = [reader._limit for reader in readers]  # type: ignore[attr-defined]
        for reader in readers:
            reader._limit = _UNLIMITED  # type: ignore[attr-defined]  # it pauses no pipe
        try:
            await self._transport.read_to_the_end()
        finally:
            for reader, limit in zip(readers, limits, strict=True):
                reader._limit = limit  # type: ignore[attr-defined]
        # At their ends, so neither waits.
        stdout = None if self.stdout is None else await _all_of(self.stdout)
        stderr = None if self.stderr is None else await _all_of(self.stderr)
        await self.wait()
        return stdout, stderr


def _is_at_rest(reader: Any) -> bool:
    """Whether nobody reads from it, its pipe is not paused, and its parts have known names."""
    unknown = object()
    return (
        getattr(reader, "_waiter", unknown) is None
        and getattr(reader, "_paused", unknown) is False
        and isinstance(getattr(reader, "_limit", unknown), int)
    )


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    blocks = []
    while block := await reader.read(_UNLIMITED):
        blocks.append(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


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

    There is neither a thread for each child (3.11) nor a child watcher: the child is reaped when
    its output has ended, and the running loop watches its pidfd where it runs on, has no output
    pipe, or is waited for.  A child that leaves its output to another process, and that nobody
    waits for, is a zombie until ``returncode`` is read or the output ends.  Works on every loop
    that has ``add_reader``.

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
    child = Popen[bytes](
        (program, *args), stdin=stdin, stdout=stdout, stderr=stderr, bufsize=0, **options
    )
    protocol = SubprocessStreamProtocol(limit=limit, loop=loop)
    transport = Transport(loop, protocol, child)
    try:
        await transport.connect()
    except BaseException:  # a pipe could not be connected, or the task is cancelled
        await transport.abandon()
        raise
    return _Process(transport, protocol, loop)
