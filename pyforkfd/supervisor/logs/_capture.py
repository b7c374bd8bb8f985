"""The output of programs that know nothing of us: captured by line, through a pipe."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress

from pyforkfd._fd import Fd

from ._records import MAX_LINE, Entry, Origin, captured, decode

_CHUNK = 4096  # bytes of one read(2): up to so many lines are published before the next look
_LINE_COST = 100  # bytes that could be read in the time in which one line is published


class Capture:
    """One stream of one worker, read by the loop when it is readable.

    The worker is given :attr:`writer`, which is to be closed here after the spawn.
    ``handle()`` never waits and reads a bounded amount, so that a worker which floods its
    output gets no more than its share of the loop: the pipe fills, and the worker waits
    in its write(2), as it does with any slow reader.  Memory is bounded by ``max_line``.

    A pipe ends when its last writer closes it, which may be a grandchild that outlives the
    worker by years.  :meth:`worker_gone` limits that: the rest is read as long as there is
    any within the grace, then the stream ends here, and a later write is EPIPE.

    Args:
        origin: the worker.
        stream: "stdout", "stderr"; or "log" where the lines are records, from a
            RecordWriter on a pipe.  A line that is none becomes one.
        publish: called with each entry; must not wait.
        max_line: bytes kept of one line; the rest of a longer one is skipped and counted
            in its ``"cut"``.
        budget: bytes read by one ``handle()``, each line counted as 100 more.
        pipe_size: bytes the pipe shall hold, F_SETPIPE_SZ; None leaves it as it is.  Where
            /proc/sys/fs/pipe-max-size or the user's share forbids it, the largest that is
            allowed, pipe(7).
        on_end: called with the descriptor before it is closed: a poller must let go of it
            first, or it would watch the open file as long as any process has that, epoll(7).
        reader: our end of a pipe that is there already, taken; the worker has the other.

    Raises:
        OSError: as pipe2(2) says.

    Attributes:
        writer: the worker's end, owned by this object until closed.
        ended: nothing more comes; the descriptor is closed.
        pipe_size: bytes the pipe holds.
        lines: how many were published.
        cut: how many of them were too long.
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
        self._part, self._length = b"", 0  # of the line under way: what is kept, how long it is
        self._deadline: float | None = None
        self._overdue_bytes = 0  # read since then
        self.lines = self.cut = 0
        self.ended = False
        if reader is None:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            self._fd, self.writer = Fd(ours), Fd(theirs)
        else:
            ours, self._fd, self.writer = reader.fileno(), reader, Fd(os.dup(reader.fileno()))
            self.writer.close()
        # Ours alone: the worker's end is another description, and stays blocking.
        os.set_blocking(ours, False)
        self.pipe_size = _enlarge(ours, pipe_size)

    def fileno(self) -> int:
        """Our end, to wait for; borrowed.  ValueError once ended."""
        return self._fd.fileno()

    def worker_gone(self, now: float, grace: float = 1.0) -> None:
        """The worker is dead: end the stream after ``grace`` seconds, whoever has its pipe.

        Args:
            now: time.monotonic().
            grace: seconds in which what still comes is read.
        """
        self._deadline = now + grace

    def overdue(self, now: float) -> bool:
        """Whether the grace is over, so that ``handle()`` is to be called, ready or not."""
        return not self.ended and self._deadline is not None and now >= self._deadline

    def handle(self, now: float | None = None) -> int:
        """Read what is there, up to the budget, and publish its lines.

        Args:
            now: time.monotonic(); None: do not look at the grace.

        Returns:
            Bytes read.  ``ended`` says whether that was all.
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
            # Whoever has it writes faster than we read.  What was in the pipe when the
            # grace was over, the worker's last words among it, is read; no more.
            self._overdue_bytes += total
            if self._overdue_bytes >= self.pipe_size:
                self._end()
        return total

    def close(self) -> None:
        """End now: publish a line without its end, close both ends."""
        if not self.ended:
            self._end()
        self.writer.close()

    def _take(self, data: bytes) -> int:
        """Publish what is whole; how many lines that were."""
        ns = time.time_ns()
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._extend(line)
            self._emit(ns)
        self._extend(rest)
        return len(whole)

    def _extend(self, piece: bytes) -> None:
        self._length += len(piece)
        if room := self._max - len(self._part):
            self._part += piece[:room]

    def _emit(self, ns: int) -> None:
        text, length = self._part, self._length
        self._part, self._length = b"", 0
        cut = length if length > len(text) else 0
        if self.stream == "log":
            if not text:
                return
            entry = decode(text) or captured(self.origin, "log", ns, text, cut=cut)
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
    """F_SETPIPE_SZ, by halves down to what is allowed; what the pipe then holds."""
    have = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    while size is not None and size > have:
        with suppress(PermissionError, OSError):
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
        size //= 2
    return have
