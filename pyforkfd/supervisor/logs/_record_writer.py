"""A writer of records to a description that many processes share: one writev(2) for each."""

from __future__ import annotations

import atexit
import collections
import errno
import os
import select
import stat
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ._records import MAX_LINE, Origin, encode, time_text
from ._torn_line import end_torn_line

_WARNING, _ERROR = 30, 40  # logging's numbers, without its import
_RING_BYTES = 1 << 20

_writers: weakref.WeakSet[RecordWriter] = weakref.WeakSet()


def _reset_in_child() -> None:
    for writer in list(_writers):
        writer._reset()


os.register_at_fork(after_in_child=_reset_in_child)


def _flush_at_exit(reference: weakref.ref[RecordWriter]) -> None:
    writer = reference()
    if writer is not None:
        with suppress(OSError):  # closed before us, and no reader of an error is left
            writer._end()


class RecordWriter:
    """A writer of one process's records to a shared descriptor.

    The description has O_APPEND, so the kernel puts each writev at the end of the file
    under the inode's lock: records of several processes neither mix nor overwrite one
    another (write(2)).  On a pipe, records are cut to PIPE_BUF, for which pipe(7) promises
    the same.

    Each record has the time, CLOCK_REALTIME in nanoseconds, and a number of this process,
    taken under the same lock that is held for the write.  So records of one pid lie in the
    order of their numbers, save for one that a signal handler writes while another is on
    its way, and for buffered ones, which are marked.

    A record that cannot be written is lost and counted in ``lost``, and the next record that
    can be written has the count: a full disk must not stop a service. A write that the kernel
    cuts short (ENOSPC, RLIMIT_FSIZE, a quota) leaves a torn line, whose last byte becomes a
    newline: the next record, of whatever process, begins a new line. At the end of the process,
    a record of its own has the count.

    Safe to use from many threads, from signal handlers, and after a fork: the child has its
    own pid and numbers, and not its parent's buffered records.  Buffered records are written
    at the end of the process, by atexit.

    Args:
        fd: borrowed, and used until the end; :meth:`replace` puts another file behind it.
        origin: fields of every record.
        limit: the longest line in bytes, newline included.
        ring_bytes: capacity of the buffer of :meth:`buffer`.

    Raises:
        OSError: EBADF, fd is not open.
        ValueError: the limit is below 1024 bytes.

    Attributes:
        lost: count of the records that could not be written, and of those that fell out of
            the ring.
    """

    def __init__(
        self, fd: int, origin: Origin, *, limit: int = MAX_LINE, ring_bytes: int = _RING_BYTES
    ) -> None:
        if limit < 1024:
            raise ValueError(f"RecordWriter: a limit of {limit} bytes; it is at least 1024")
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            limit = min(limit, select.PIPE_BUF)
        self._fd = fd
        self._limit = limit
        self._fields = origin.fields()
        self._ring: collections.deque[bytes] = collections.deque()
        self._ring_bytes, self._ring_bound = 0, ring_bytes
        self._buffering = False
        self._reset()
        _writers.add(self)
        # Here and not at the import: a zygote's worker runs only what it has registered itself.
        atexit.register(_flush_at_exit, weakref.ref(self))

    def _reset(self) -> None:
        # A signal handler may log while its thread is in here, hence re-entrant; a thread
        # that held the lock does not exist in a forked child, hence new.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._seq = 0
        self.lost = 0
        self._unreported = 0  # lost, and in no record yet
        self._torn = False
        self._ring.clear()
        self._ring_bytes = 0

    def fileno(self) -> int:
        """Return the borrowed descriptor."""
        return self._fd

    def write(
        self,
        level: str,
        message: str,
        *,
        number: int = 20,
        logger: str = "",
        exception: str = "",
        extra: Mapping[Any, Any] | None = None,
    ) -> None:
        """Write one record, or buffer it.  A write that fails does not raise.

        Args:
            level: name of the level.
            message: any text.
            number: the level as logging has it.  From 30, WARNING, the record is written even
                while buffering; from 40, ERROR, the buffered records are written before it.
            logger: name of the logger.
            exception: a traceback as text.
            extra: further fields.

        Raises:
            OSError: EBADF, the program has closed the descriptor.
        """
        with self._lock:
            head: dict[str, Any] = {
                "time": time_text(time.time_ns()),
                "seq": self._seq,
                "level": level,
                **self._fields,
                "pid": self._pid,
            }
            self._seq += 1
            if logger:
                head["logger"] = logger
            buffered = self._buffering and number < _WARNING
            if buffered:
                head["buffered"] = True
            elif self._unreported:
                head["lost"] = self._unreported
            line = encode(head, message, exception=exception, extra=extra, limit=self._limit)
            if buffered:
                self._append(line)
                return
            if number >= _ERROR:
                self.flush()
            if self._put(line) and "lost" in head:
                self._unreported -= head["lost"]

    def buffer(self, on: bool = True) -> None:
        """Buffer records below WARNING in memory from now on, or end that.

        The oldest fall out when the ring is full, and are counted in ``lost``.

        Args:
            on: False: write the buffered records, and every record from now on.
        """
        with self._lock:
            self._buffering = on
            if not on:
                self.flush()

    def flush(self) -> None:
        """Write the buffered records, oldest first; buffering goes on."""
        with self._lock:
            while self._ring:
                line = self._ring.popleft()
                self._shrink(line)
                self._put(line)

    def replace(self, fd: int) -> None:
        """Put another file behind the descriptor, for all threads at once: dup3(2).

        A write that is under way still goes to the old file, whole.

        Args:
            fd: borrowed; may be closed after the return.

        Raises:
            OSError: EBADF, fd is not open.
            ValueError: it is the descriptor itself.
        """
        if fd == self._fd:
            raise ValueError(
                f"replace: {fd} is the descriptor that is to be replaced: pass another one"
            )
        with self._lock:
            os.dup2(fd, self._fd, inheritable=os.get_inheritable(self._fd))
            self._torn = False

    def _end(self) -> None:
        self.flush()
        if lost := self._unreported:
            self.write("WARNING", f"{lost} records could not be written", number=_WARNING)

    def _append(self, line: bytes) -> None:
        size = len(line)  # no call within the sum: a signal handler may log as well
        self._ring.append(line)
        self._ring_bytes += size
        while self._ring_bytes > self._ring_bound and self._ring:
            self._shrink(self._ring.popleft())
            self._count_lost()

    def _shrink(self, line: bytes) -> None:
        size = len(line)
        self._ring_bytes -= size

    def _put(self, line: bytes) -> bool:
        parts = [b"\n", line] if self._torn else [line]
        wanted = sum(map(len, parts))
        try:
            written = os.writev(self._fd, parts)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise  # closed by the program: an error of its own
            self._count_lost()
            return False
        self._torn = False
        if written == wanted:
            return True
        # The rest in a second write could land behind another process's record.
        self._torn = not end_torn_line(self._fd, b"".join(parts)[:written])
        self._count_lost()
        return False

    def _count_lost(self) -> None:
        self.lost += 1
        self._unreported += 1
