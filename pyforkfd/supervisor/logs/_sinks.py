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

from ._lines import Lines
from ._records import Entry, Origin

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
        self._rings: dict[str, _Ring] = {}
        self._followers: dict[int, Callable[[Entry | Lines], None]] = {}
        self._handles = itertools.count()

    def add(self, entry: Entry) -> None:
        """Retain an entry and pass it to the followers.

        A follower that raises is removed: it must not stop the log of the others.
        """
        self._ring(entry.origin).append(next(self._number), entry, 1, len(entry.line))
        self._pass_on(entry)

    def add_lines(self, lines: Lines) -> None:
        """Retain captured lines and pass them to the followers, together."""
        ring = self._ring(lines.origin)
        last = lines.last(self._keep, self._keep_bytes)
        if last is not lines:
            ring.clear()  # what is older than a dropped line goes before it
        ring.append(next(self._number), last, last.count, len(last.data) - last.count)
        self._pass_on(lines)

    def _ring(self, origin: Origin) -> _Ring:
        name = origin.component
        if (ring := self._rings.get(name)) is None:
            ring = self._rings[name] = _Ring(self._keep, self._keep_bytes)
        return ring

    def _pass_on(self, piece: Entry | Lines) -> None:
        for handle, follower in list(self._followers.items()):
            try:
                follower(piece)
            except Exception:
                self._followers.pop(handle, None)

    def tail(self, count: int | None = None, *, components: Iterable[str] = ()) -> list[Entry]:
        """Return the last entries, in the order in which they were added.

        Args:
            count: at most so many; None: all that are retained.
            components: only of these; of all if empty.
        """
        names = set(components) or self._rings.keys()
        numbered = [one for name in names if name in self._rings for one in self._rings[name].all()]
        numbered.sort(key=lambda one: one[0])
        entries = [entry for _, entry in numbered]
        return entries if count is None else entries[len(entries) - min(count, len(entries)) :]

    def follow(self, callback: Callable[[Entry | Lines], None]) -> int:
        """Call a function with each entry from now on.

        Args:
            callback: must not wait.  Captured lines that were read at once come together.

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


class _Ring:
    """The last entries of a component, those that came together in one piece.

    A piece leaves as a whole, once the entries after it suffice, so that a flood costs no time
    for each of its lines; :meth:`all` keeps to the bounds.
    """

    def __init__(self, keep: int, keep_bytes: int) -> None:
        self._keep, self._keep_bytes = keep, keep_bytes
        self._pieces: collections.deque[tuple[int, Entry | Lines, int, int]] = collections.deque()
        self._count = self._size = 0

    def append(self, number: int, piece: Entry | Lines, count: int, size: int) -> None:
        """Add a piece; size is that of its lines in bytes."""
        self._pieces.append((number, piece, count, size))
        self._count += count
        self._size += size
        while len(self._pieces) > 1:
            _, _, count, size = self._pieces[0]
            if self._count - count < self._keep and self._size - size < self._keep_bytes:
                return
            self._pieces.popleft()
            self._count -= count
            self._size -= size

    def clear(self) -> None:
        """Drop all entries."""
        self._pieces.clear()
        self._count = self._size = 0

    def all(self) -> list[tuple[int, Entry]]:
        """Return the entries within the bounds, each with the number of its piece."""
        found: list[tuple[int, Entry]] = []
        size = 0
        for number, piece, _, _ in reversed(self._pieces):
            entries = [piece] if isinstance(piece, Entry) else [*piece.entries()]
            for entry in reversed(entries):
                size += len(entry.line)
                if len(found) == self._keep or (size > self._keep_bytes and found):
                    return found[::-1]
                found.append((number, entry))
        return found[::-1]


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
        self._queue: collections.deque[tuple[bytes, int]] = collections.deque()  # count of lines
        self._bytes = 0
        self._sent = 0  # of the first piece in the queue
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
        self._add((as_text(entry) if self._text else entry.line) + b"\n", 1)

    def add_lines(self, lines: Lines) -> None:
        """Write captured lines, or queue them until the reader takes more."""
        self._add(lines_as_text(lines) if self._text else lines.data, lines.count)

    def _add(self, data: bytes, count: int) -> None:
        if self.closed:
            self.dropped += count
            return
        self._queue.append((data, count))
        self._bytes += len(data)
        if len(self._queue) == 1:
            self.handle()
        while self._bytes > self._max and len(self._queue) > 1:
            at = 1 if self._sent else 0  # the rest of one that is partly written must follow
            data, count = self._queue[at]
            del self._queue[at]
            self._bytes -= len(data)
            self.dropped += count
            self.trouble = "the reader is slow"

    def handle(self) -> None:
        """Write as much of the queue as the reader takes; call it when writable."""
        while self._queue and not self.closed:
            data, count = self._queue[0]
            rest = memoryview(data)[self._sent :]
            try:
                self._sent += self._write(rest[: self._at_once])
            except BlockingIOError:
                return
            except OSError as error:
                self.trouble = error.strerror or str(error)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    written = data.count(b"\n", 0, self._sent) if count > 1 else 0
                    self.written += written
                    self.dropped += count - written
                    self._remove_first()
                    continue
                self._drop_queue()
                return
            if self._sent == len(data):
                self._remove_first()
                self.written += count

    def _remove_first(self) -> None:
        self._bytes -= len(self._queue.popleft()[0])
        self._sent = 0

    def close(self) -> None:
        """Close the sink's own descriptor; the queue is dropped and counted."""
        self._drop_queue()
        if self._own is not None:
            self._own.close()

    def _drop_queue(self) -> None:
        self.closed = True
        self.dropped += sum(count for _, count in self._queue)
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


def lines_as_text(lines: Lines) -> bytes:
    """Format captured lines for people, each with a newline, as :func:`as_text` would."""
    opening = lines.head + b',"message":"'
    empty = Entry(
        time=lines.time, origin=lines.origin, stream=lines.stream, level="", line=opening + b'"}'
    )
    prefix = as_text(empty)
    if lines.is_plain:
        # No message has a quote: its ends need no decoder, and are found all at once.
        return lines.data.replace(opening, prefix).replace(b'"}\n', b"\n")
    texts = []
    for body in json.loads(b"[%b]" % lines.data[:-1].replace(b"\n", b",")):
        text = _printable(body["message"])
        texts.append(f"{text} cut={body['cut']}\n" if "cut" in body else text + "\n")
    # No message has a newline or a lone surrogate.
    return prefix + "".join(texts)[:-1].encode().replace(b"\n", b"\n" + prefix) + b"\n"


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
