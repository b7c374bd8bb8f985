"""The captured output of a worker: one stream, read from a pipe by line."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress

from pyforkfd._fd import Fd

from ._records import MAX_LINE, Entry, Origin, attribute, captured

_CHUNK = 4096  # bytes of one read(2): at most so many lines come between two budget checks
_LINE_COST = 100  # what publishing a line costs, in bytes that could be read in that time


class Capture:
    """One stream of one worker, read by the loop when it is readable.

    The worker gets :attr:`writer`; close it here after the spawn.  ``handle()`` never waits
    and reads a bounded amount.  A worker that floods its output gets no more than its share
    of the loop: the pipe fills, and write(2) blocks the worker, the back-pressure of any slow
    reader.  Memory is bounded by ``max_line``.

    A pipe ends when its last writer closes it, which may be a grandchild that outlives the
    worker by years.  :meth:`worker_gone` limits that: what arrives within the grace period is
    read, then the stream ends here, and a later write fails with EPIPE.

    Args:
        origin: the worker.
        stream: "stdout", "stderr"; or "log" where the lines are records, from a
            RecordWriter on a pipe.  A line that is not a record becomes one; the origin of a
            record is the worker, whatever it claims.
        publish: called with each entry; must not wait.
        max_line: bytes of a line that are retained.  The rest of a longer line is skipped,
            and its ``"cut"`` has the length of the whole.
        budget: bytes read by one ``handle()``, each line counted as 100 more.
        pipe_size: capacity of the pipe in bytes, F_SETPIPE_SZ; None leaves it as it is.  Where
            /proc/sys/fs/pipe-max-size or the user's share forbids it, the largest that is
            allowed, pipe(7).
        on_end: called with the descriptor before it is closed.  A poller must remove it
            first, or it would watch the open file as long as any process has that, epoll(7).
        reader: our end of an existing pipe, taken; the worker has the other.

    Raises:
        ValueError: ``max_line`` or ``budget`` is below 1.
        OSError: pipe2(2) failed.

    Attributes:
        writer: the worker's end, owned by this object until closed.
        ended: whether the stream has ended and the descriptor is closed.
        pipe_size: capacity of the pipe in bytes.
        lines: count of the lines published.
        cut: count of those that were too long.
    """

    def __init__(
        self,
        origin: Origin,
        stream: str,
        publish: Callable[[Entry], None],
        *,
        max_line: int = MAX_LINE,
        budget: int = 1 << 17,
        pipe_size: int | None = 1 << 18,
        on_end: Callable[[int], None] | None = None,
        reader: Fd | None = None,
    ) -> None:
        if max_line < 1 or budget < 1:
            raise ValueError(f"Capture: max_line={max_line}, budget={budget}: at least 1")
        self.origin, self.stream = origin, stream
        self._publish, self._max, self._budget = publish, max_line, budget
        self._on_end = on_end
        self._part, self._length = b"", 0  # of the line under way: its retained part, its length
        self._deadline: float | None = None
        self._overdue_bytes = 0  # read since the deadline
        self.lines = self.cut = 0
        self.ended = False
        if reader is None:
            fd, worker_fd = os.pipe2(os.O_CLOEXEC)
            self._fd, self.writer = Fd(fd), Fd(worker_fd)
        else:
            fd, self._fd, self.writer = reader.fileno(), reader, Fd(os.dup(reader.fileno()))
            self.writer.close()
        # Ours alone: the worker's end is another description, and stays blocking.
        os.set_blocking(fd, False)
        self.pipe_size = _enlarge(fd, pipe_size)

    def fileno(self) -> int:
        """Return our end of the pipe, to wait for; borrowed.

        Raises:
            ValueError: the stream has ended.
        """
        return self._fd.fileno()

    @property
    def begun(self) -> tuple[bytes, int]:
        """The line under way: its retained part, and its length so far in bytes."""
        return self._part, self._length

    def go_on(self, part: bytes, length: int) -> None:
        """Go on with a line that a predecessor has begun to read.

        Args:
            part: see :attr:`begun`.
            length: likewise.
        """
        self._part, self._length = part, length

    def worker_gone(self, now: float, grace: float = 1.0) -> None:
        """End the stream of a dead worker after a grace period, whoever has its pipe.

        Args:
            now: time.monotonic().
            grace: seconds in which what still arrives is read.
        """
        self._deadline = now + grace

    def overdue(self, now: float) -> bool:
        """Return whether the grace period is over: call ``handle()`` then, readable or not."""
        return not self.ended and self._deadline is not None and now >= self._deadline

    def handle(self, now: float | None = None) -> int:
        """Read what the pipe holds, up to the budget, and publish its lines.

        Args:
            now: time.monotonic(); None: do not end the stream, though it be overdue.

        Returns:
            Bytes read.  ``ended`` is true afterwards if the stream has ended.
        """
        if self.ended:
            return 0
        last = now is not None and self.overdue(now)
        total = spent = 0
        while spent < self._budget:
            try:
                data = os.read(self.fileno(), _CHUNK)
            except BlockingIOError:
                if last:
                    self._end()
                return total
            if not data:
                self._end()
                return total
            total += len(data)
            spent += len(data) + _LINE_COST * self._take(data)
        if last:
            # Whoever has the pipe writes faster than we read.  What it held at the end of the
            # grace period, the worker's last words included, is read; no more.
            self._overdue_bytes += total
            if self._overdue_bytes >= self.pipe_size:
                self._end()
        return total

    def close(self) -> None:
        """End the stream now: publish an unfinished line, close both ends."""
        if not self.ended:
            self._end()
        self.writer.close()

    def _take(self, data: bytes) -> int:
        """Publish the whole lines of these data, and return their count."""
        ns = time.time_ns()
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._extend(line)
            self._emit(ns)
        self._extend(rest)
        return len(whole)

    def _extend(self, piece: bytes) -> None:
        self._length += len(piece)
        if space := self._max - len(self._part):
            self._part += piece[:space]

    def _emit(self, ns: int) -> None:
        text, length = self._part, self._length
        self._part, self._length = b"", 0
        cut = length if length > len(text) else 0
        if self.stream == "log":
            if not text:
                return
            entry = attribute(text, self.origin) or captured(self.origin, "log", ns, text, cut=cut)
        else:
            entry = captured(self.origin, self.stream, ns, text.removesuffix(b"\r"), cut=cut)
        self.lines += 1
        self.cut += bool(cut)
        self._publish(entry)

    def _end(self) -> None:
        self.ended = True
        if self._on_end is not None:
            self._on_end(self.fileno())
        self._fd.close()
        if self._length:
            self._emit(time.time_ns())


def _enlarge(fd: int, size: int | None) -> int:
    """Enlarge a pipe (F_SETPIPE_SZ), by halves down to what is allowed; return its capacity."""
    current = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    while size is not None and size > current:
        with suppress(OSError):
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
        size //= 2
    return current
