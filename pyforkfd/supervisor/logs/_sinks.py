"""Sinks of entries: the memory of the last ones, and a stream such as stdout."""

from __future__ import annotations

import collections
import errno
import itertools
import json
import os
import select
import stat
from collections.abc import Callable, Iterable

from pyforkfd._checks import as_fd
from pyforkfd._fd import Fd
from pyforkfd._types import HasFileno

from ._records import Entry

_CHUNK = 1 << 16


class RingTail:
    """The last entries of each component, for ``pyforkfd logs``, and their followers.

    Args:
        keep: entries retained per component.
        keep_bytes: bytes of lines retained per component; the oldest fall out at either bound.

    Raises:
        ValueError: a bound is below 1.
    """

    def __init__(self, *, keep: int = 1000, keep_bytes: int = 1 << 20) -> None:
        if keep < 1 or keep_bytes < 1:
            raise ValueError(f"RingTail: keep={keep}, keep_bytes={keep_bytes}: at least 1")
        self._keep, self._keep_bytes = keep, keep_bytes
        self._number = itertools.count()
        self._rings: dict[str, collections.deque[tuple[int, Entry]]] = {}
        self._sizes: dict[str, int] = {}
        self._followers: dict[int, Callable[[Entry], None]] = {}
        self._handles = itertools.count()

    def add(self, entry: Entry) -> None:
        """Retain an entry and pass it to the followers.

        A follower that raises is removed: it must not stop the log of the others.
        """
        name = entry.origin.component
        ring = self._rings.setdefault(name, collections.deque())
        ring.append((next(self._number), entry))
        size = self._sizes.get(name, 0) + len(entry.line)
        while len(ring) > self._keep or (size > self._keep_bytes and len(ring) > 1):
            size -= len(ring.popleft()[1].line)
        self._sizes[name] = size
        for handle, follower in list(self._followers.items()):
            try:
                follower(entry)
            except Exception:
                self._followers.pop(handle, None)

    def tail(self, count: int | None = None, *, components: Iterable[str] = ()) -> list[Entry]:
        """Return the last entries, in the order in which they were added.

        Args:
            count: at most so many; None: all that are retained.
            components: only of these; of all if empty.
        """
        names = set(components) or self._rings.keys()
        numbered = [one for name in names for one in self._rings.get(name, ())]
        numbered.sort(key=lambda one: one[0])
        entries = [entry for _, entry in numbered]
        return entries if count is None else entries[len(entries) - min(count, len(entries)) :]

    def follow(self, callback: Callable[[Entry], None]) -> int:
        """Call a function with each entry from now on.

        Args:
            callback: must not wait.

        Returns:
            A handle for :meth:`unfollow`.
        """
        handle = next(self._handles)
        self._followers[handle] = callback
        return handle

    def unfollow(self, handle: int) -> None:
        """Remove a follower; one that was removed already is no error."""
        self._followers.pop(handle, None)

    def forget(self, component: str) -> None:
        """Free the entries of a component that the configuration no longer has."""
        self._rings.pop(component, None)
        self._sizes.pop(component, None)


class StreamSink:
    """A sink of lines to stdout or another descriptor that never waits for the reader.

    A pipe or terminal is opened anew through /proc/self/fd, so that O_NONBLOCK is ours
    alone: on the inherited description every process that has it would see the flag.
    Where that is refused, poll(2) comes before each write, and a pipe gets PIPE_BUF bytes at
    a time, which it then has space for.  A socket is written with MSG_DONTWAIT.

    Args:
        fd: borrowed.
        text: lines for people, :func:`as_text`, instead of JSON.
        max_bytes: bound of the queue in bytes; beyond it the oldest entries are dropped and
            counted.
        name: for reports and metrics.

    Raises:
        OSError: EBADF, fd is not open.

    Attributes:
        written: count of the entries written whole.
        name: for reports and metrics.
        dropped: count of the entries dropped because the reader was slow or had closed.
        trouble: the reason of the last drop.
        closed: whether nothing can be written any more: EPIPE, another permanent error, or
            :meth:`close`.  A full disk is not permanent.
    """

    def __init__(
        self,
        fd: int | HasFileno,
        *,
        text: bool = False,
        max_bytes: int = 1 << 20,
        name: str = "stream",
    ) -> None:
        self.name, self.trouble = name, ""
        self._fd = as_fd(fd, "StreamSink")
        kind = os.fstat(self._fd).st_mode
        self._text, self._max = text, max_bytes
        self._waits = not stat.S_ISREG(kind)  # epoll(7) has no regular files: always ready
        self._at_once = _CHUNK
        self._own: Fd | None = None
        self._socket = stat.S_ISSOCK(kind)
        if self._waits and not self._socket:
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                self._own = Fd(os.open(f"/proc/self/fd/{self._fd}", flags))
                self._fd = self._own.fileno()
            except OSError:  # the file belongs to another user, or there is no /proc
                self._at_once = select.PIPE_BUF
        self._queue: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._sent = 0  # of the first line in the queue
        self.written = self.dropped = 0
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor to wait for (EPOLLOUT) while :attr:`wants_write`."""
        return self._fd

    @property
    def wants_write(self) -> bool:
        """Whether the queue has something for the reader."""
        return bool(self._queue) and not self.closed

    def add(self, entry: Entry) -> None:
        """Write an entry, or queue it until the reader takes more."""
        if self.closed:
            self.dropped += 1
            return
        line = (as_text(entry) if self._text else entry.line) + b"\n"
        self._queue.append(line)
        self._bytes += len(line)
        if len(self._queue) == 1:
            self.handle()
        while self._bytes > self._max and len(self._queue) > 1:
            at = 1 if self._sent else 0  # the rest of one that is partly written must follow
            self._bytes -= len(self._queue[at])
            del self._queue[at]
            self.dropped += 1
            self.trouble = "the reader is slow"

    def handle(self) -> None:
        """Write as much of the queue as the reader takes; call it when writable."""
        while self._queue and not self.closed:
            line = memoryview(self._queue[0])[self._sent :]
            try:
                self._sent += self._write(line[: self._at_once])
            except BlockingIOError:
                return
            except OSError as error:
                self.trouble = error.strerror or str(error)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    self._bytes -= len(self._queue.popleft())
                    self._sent = 0
                    self.dropped += 1
                    continue
                self._drop_queue()
                return
            if self._sent == len(self._queue[0]):
                self._bytes -= len(self._queue.popleft())
                self._sent = 0
                self.written += 1

    def close(self) -> None:
        """Close the sink's own descriptor; the queue is dropped and counted."""
        self._drop_queue()
        if self._own is not None:
            self._own.close()

    def _drop_queue(self) -> None:
        self.closed = True
        self.dropped += len(self._queue)
        self._queue.clear()
        self._bytes = self._sent = 0

    def _write(self, data: memoryview) -> int:
        if self._socket:
            return _send(self._fd, data)
        if self._waits and self._own is None:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
        return os.write(self._fd, data)


def as_text(entry: Entry) -> bytes:
    """Format an entry for people: time, worker, level or stream, message, fields, traceback."""
    body = json.loads(entry.line)
    origin = entry.origin
    name = origin.component + (f"/{origin.worker}" if origin.worker is not None else "")
    words = [str(body["time"]), name, entry.level or entry.stream]
    if "logger" in body:
        words.append(str(body["logger"]))
    known = "time seq level component worker generation pid logger message exception stream"
    more = [f"{k}={v!r}" for k, v in body.items() if k not in known.split()]
    text = " ".join([*words[:-1], words[-1] + ":", str(body.get("message", "")), *more])
    if body.get("exception"):
        text += "\n" + str(body["exception"])
    # The lines after the first are indented, to show that they belong to it.
    return _printable(text).replace("\n", "\n    ").encode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """Escape what a terminal would obey: a log must not move the reader's cursor."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def _send(fd: int, data: memoryview) -> int:
    import socket  # here: only where the stream is one

    one = socket.socket(fileno=fd)
    try:
        return one.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        one.detach()
