"""Where entries go: the memory of the last ones, and a stream such as stdout."""

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
    """The last entries of each component, for ``pyforkfd logs``, and whoever follows.

    Args:
        keep: entries per component.
        keep_bytes: bytes of lines per component; the oldest fall out at either bound.

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
        """Keep an entry and hand it to the followers.

        One that raises is a follower no more: it must not stop the others' log.
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
        """The last ``count`` entries as they came; None: all that are kept.

        Args:
            count: at most so many.
            components: of these alone, of all if empty.
        """
        names = set(components) or self._rings.keys()
        numbered = [one for name in names for one in self._rings.get(name, ())]
        numbered.sort(key=lambda one: one[0])
        entries = [entry for _, entry in numbered]
        return entries if count is None else entries[len(entries) - min(count, len(entries)) :]

    def follow(self, callback: Callable[[Entry], None]) -> int:
        """Call back with each entry from now on; the callback must not wait.

        Returns:
            A handle for :meth:`unfollow`.
        """
        handle = next(self._handles)
        self._followers[handle] = callback
        return handle

    def unfollow(self, handle: int) -> None:
        """End a follow; one that has ended already is fine."""
        self._followers.pop(handle, None)

    def forget(self, component: str) -> None:
        """Free what is kept of a component that the configuration no longer has."""
        self._rings.pop(component, None)
        self._sizes.pop(component, None)


class StreamSink:
    """Lines to stdout or another descriptor, without ever waiting for its reader.

    A pipe or terminal is opened anew through /proc/self/fd, so that O_NONBLOCK is ours
    alone: on the inherited description it would be seen by every process that has it.
    Where that is refused, it is asked with poll(2) first, and a pipe gets PIPE_BUF at a
    time, which it then has room for; a socket is sent to with MSG_DONTWAIT all the same.

    Args:
        fd: borrowed.
        text: people's lines, :func:`as_text`, instead of JSON.
        max_bytes: how much may wait for the reader; the oldest are dropped and counted.

    Raises:
        OSError: EBADF, it is not open.

    Attributes:
        written: entries written whole.
        dropped: entries dropped since the reader was slow or gone.
        gone: the reader is: EPIPE, or another error that stays; a full disk does not.
    """

    def __init__(
        self, fd: int | HasFileno, *, text: bool = False, max_bytes: int = 1 << 20
    ) -> None:
        number = as_fd(fd, "StreamSink")
        kind = os.fstat(number).st_mode
        self._text, self._max = text, max_bytes
        self._waits = not stat.S_ISREG(kind)  # epoll(7) has no regular files: always ready
        self._at_once = _CHUNK
        self._own: Fd | None = None
        self._fd = number
        if self._waits and not stat.S_ISSOCK(kind):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                self._own = Fd(os.open(f"/proc/self/fd/{number}", flags))
                self._fd = self._own.fileno()
            except OSError:  # the file is another user's, or there is no /proc
                self._at_once = select.PIPE_BUF
        self._socket = stat.S_ISSOCK(kind)
        self._queue: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._sent = 0  # of the first line in the queue
        self.written = self.dropped = 0
        self.gone = False

    def fileno(self) -> int:
        """To wait for EPOLLOUT while :attr:`wants_write`; the sink's or the borrowed one."""
        return self._fd

    @property
    def wants_write(self) -> bool:
        """Something waits for the reader."""
        return bool(self._queue) and not self.gone

    def add(self, entry: Entry) -> None:
        """Write an entry, or keep it until the reader has room."""
        if self.gone:
            self.dropped += 1
            return
        line = (as_text(entry) if self._text else entry.line) + b"\n"
        self._queue.append(line)
        self._bytes += len(line)
        if len(self._queue) == 1:
            self.handle()
        while self._bytes > self._max and len(self._queue) > 1:
            # One that is partly written is needed whole: its line would be torn.
            at = 1 if self._sent else 0
            self._bytes -= len(self._queue[at])
            del self._queue[at]
            self.dropped += 1

    def handle(self) -> None:
        """Write as much as there is room for; to be called when writable."""
        while self._queue and not self.gone:
            line = memoryview(self._queue[0])[self._sent :]
            try:
                self._sent += self._write(line[: self._at_once])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    self._bytes -= len(self._queue.popleft())
                    self._sent = 0
                    self.dropped += 1
                    continue
                self.gone = True
                self.dropped += len(self._queue)
                self._queue.clear()
                self._bytes = self._sent = 0
                return
            if self._sent == len(self._queue[0]):
                self._bytes -= len(self._queue.popleft())
                self._sent = 0
                self.written += 1

    def close(self) -> None:
        """Close what the sink has opened; what still waits is dropped and counted."""
        self.dropped += len(self._queue)
        self._queue.clear()
        self._bytes = self._sent = 0
        self.gone = True
        if self._own is not None:
            self._own.close()

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
    """An entry as people read it: time, who, level or stream, message, fields, traceback."""
    body = json.loads(entry.line)
    origin = entry.origin
    who = origin.component + (f"/{origin.worker}" if origin.worker is not None else "")
    words = [str(body["time"]), who, entry.level or entry.stream]
    if "logger" in body:
        words.append(str(body["logger"]))
    known = "time seq level component worker generation pid logger message exception stream"
    more = [f"{k}={v!r}" for k, v in body.items() if k not in known.split()]
    text = " ".join([*words[:-1], words[-1] + ":", str(body.get("message", "")), *more])
    if body.get("exception"):
        text += "\n" + str(body["exception"])
    # The lines after the first are set in, so that they are seen to belong to it.
    return _printable(text).replace("\n", "\n    ").encode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """Without what a terminal would obey: a log must not move the reader's cursor."""
    if text.isprintable():
        return text
    keep = "\n\t"
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def _send(fd: int, data: memoryview) -> int:
    import socket  # here: only where the stream is one

    one = socket.socket(fileno=fd)
    try:
        return one.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        one.detach()
