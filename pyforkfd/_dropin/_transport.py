"""The transport of a child on asyncio: its pipes are read natively, its end is found by its pidfd.

The loop calls it as seldom as it can be: the pipes are registered once and at once, a call reads
all that a pipe holds and its end with it, and the protocol is called directly.
"""

from __future__ import annotations

import asyncio
import errno
import os
import warnings
from asyncio.base_subprocess import WriteSubprocessPipeProto
from asyncio.subprocess import SubprocessStreamProtocol
from signal import SIGKILL, SIGTERM
from typing import Any

from pyforkfd import _core
from pyforkfd._process import TRACER_PAUSE

from ._popen import Popen


class ReadPipe(asyncio.ReadTransport):
    """Our end of a pipe that the child writes to."""

    def __init__(self, child: Transport, number: int, file: Any) -> None:
        super().__init__({"pipe": file})
        self._child: Transport | None = child
        self._loop = child._loop
        self._number = number
        self._file = file
        self._fd: int = file.fileno()
        self._protocol: asyncio.BaseProtocol = child._protocol
        self._reading = False
        os.set_blocking(self._fd, False)
        self.resume_reading()

    def _readable(self) -> None:
        try:
            data, ended = _core.drain(self._fd)
        except OSError as error:
            if error.errno != errno.EIO:
                self._loop.call_exception_handler(
                    {
                        "message": "Fatal read error on pipe transport",
                        "exception": error,
                        "transport": self,
                        "protocol": self._protocol,
                    }
                )
            self._end(error)
            return
        if data and self._child is not None:
            self._child._protocol.pipe_data_received(self._number, data)
        if ended:
            self._end(None)

    def _end(self, error: OSError | None) -> None:
        self._release()
        child, self._child = self._child, None  # no cycle is left to the collector
        if child is not None:
            child._pipe_connection_lost(self._number, error)

    def _release(self) -> None:
        self.pause_reading()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and self._file is not None:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def is_closing(self) -> bool:
        return self._file is None

    def close(self) -> None:
        if self._file is not None:
            self._release()
            if not self._loop.is_closed():
                self._loop.call_soon(self._end, None)

    abort = close

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def __del__(self) -> None:
        if self._file is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._file.close()

    def __repr__(self) -> str:
        if self._file is None:
            return f"<{type(self).__name__} closed>"
        return f"<{type(self).__name__} fd={self._fd}>"


class Transport(asyncio.SubprocessTransport):
    """A child that our engine has started, and its pipes.

    The end of the output announces the end of the child in most cases; its pidfd is watched only
    where that has not, where there is no output, and where somebody waits.
    """

    _protocol: SubprocessStreamProtocol

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: SubprocessStreamProtocol,
        child: Popen[bytes],
    ) -> None:
        super().__init__({"subprocess": child})
        self._loop = loop
        self._protocol = protocol
        self._child = child
        self._returncode: int | None = None
        self._closed = self._abandoned = self._finished = False
        self._watched = -1  # a duplicate of the pidfd, which Popen closes once it is reaped
        self._pipes: dict[int, Any] = {}
        self._open: set[int] = set()
        self._waiters: list[asyncio.Future[int]] = []
        self._readers: list[asyncio.Future[None]] = []

    async def connect(self) -> None:
        """Connect the pipes."""
        child = self._child
        if child.stdin is not None:
            self._open.add(0)
            make: Any = WriteSubprocessPipeProto  # it takes any transport of a child
            connected = await self._loop.connect_write_pipe(lambda: make(self, 0), child.stdin)
            self._pipes[0] = connected[0]
        else:
            await asyncio.sleep(0)  # a task that is cancelled by now gets no child
        for number, file in ((1, child.stdout), (2, child.stderr)):
            if file is not None:
                self._open.add(number)
                self._pipes[number] = ReadPipe(self, number, file)
        self._protocol.connection_made(self)
        if self._open <= {0}:
            self._watch()

    async def abandon(self) -> None:
        """End a child whose pipes could not be connected, and reap it."""
        self._abandoned = True
        self.close()
        for file in (self._child.stdout, self._child.stderr):
            if file is not None:
                file.close()
        await self._wait()
        if self._child.stdin is not None:
            self._child.stdin.close()  # last: until then the loop may have callbacks of it

    def _watch(self) -> None:
        """Reap the child, or let the loop call when it has ended."""
        if self._returncode is not None or self._watched >= 0:
            return
        if (code := self._child.poll()) is not None:
            self._ended(code)
            return
        self._watched = self._child._duplicate()
        if self._watched < 0:  # another thread reaps it
            self._loop.call_later(TRACER_PAUSE, self._child_ended)
        else:
            self._loop.add_reader(self._watched, self._child_ended)

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, -1
        if watched >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(watched)
            os.close(watched)

    def _child_ended(self) -> None:
        self._unwatch()
        if self._returncode is not None:
            return
        if (code := self._child.poll()) is None:  # its tracer reaps it first
            self._loop.call_later(TRACER_PAUSE, self._child_ended)
        else:
            self._ended(code)

    def _ended(self, code: int) -> None:
        self._returncode = code
        self._unwatch()
        if not self._abandoned:
            self._protocol.process_exited()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(code)
        self._try_finish()

    def _pipe_connection_lost(self, number: int, error: Exception | None) -> None:
        self._open.discard(number)
        if not self._abandoned:
            self._protocol.pipe_connection_lost(number, error)
        if self._open <= {0}:
            self._watch()
            readers, self._readers = self._readers, []
            for reader in readers:
                if not reader.done():
                    reader.set_result(None)
        self._try_finish()

    def _try_finish(self) -> None:
        if self._returncode is not None and not self._open and not self._finished:
            self._finished = True
            if not self._abandoned:
                self._protocol.connection_lost(None)

    async def read_to_the_end(self) -> None:
        """Wait until the output pipes have ended; the child is then reaped, if it has too."""
        if not self._open <= {0}:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._readers.append(waiter)
            await waiter

    async def _wait(self) -> int:
        self._watch()
        if self._returncode is not None:
            return self._returncode
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._waiters.append(waiter)
        return await waiter

    def get_pid(self) -> int:
        return self._child.pid

    def get_returncode(self) -> int | None:
        return self._child.poll() if self._returncode is None else self._returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self._pipes.get(fd)

    def send_signal(self, signal: int) -> None:
        if self._returncode is not None:
            raise ProcessLookupError
        self._child.send_signal(signal)

    def terminate(self) -> None:
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        self.send_signal(SIGKILL)

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        is_over = self._loop.is_closed()
        for pipe in self._pipes.values():
            if not is_over or isinstance(pipe, ReadPipe):
                pipe.close()
        if self._returncode is None and self._child.poll() is None:
            self._child.kill()
            if not is_over:
                self._watch()

    def abort(self) -> None:
        """Close our ends alone: in the child of a fork the child is the parent's."""
        self._closed = self._abandoned = True
        self._unwatch()
        for pipe in self._pipes.values():
            pipe.abort()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, SubprocessStreamProtocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self.close()
        self._unwatch()

    def __repr__(self) -> str:
        state = "running" if self._returncode is None else f"returncode={self._returncode}"
        if self._closed:
            state = f"closed {state}"
        return f"<{type(self).__name__} pid={self._child.pid} {state} {list(self._pipes.values())}>"
