"""A reader of whole lines from a file that other processes append to."""

from __future__ import annotations

import os
from collections import deque

from pyforkfd._fd import Fd

_CHUNK = 1 << 16
_LONGEST = 1 << 18  # bytes; no writer of ours makes a longer line
_SKIP_COST = 16  # what skipping a range costs, in bytes that could be read in that time


class Reader:
    """A reading position in a file that grows.

    Ranges that this process has written itself are known by their place, which no other writer
    can forge (:meth:`skip`).

    Args:
        fd: taken; open for reading, on a description of its own.

    Attributes:
        at: offset up to which the file has been read.
        skipped: count of the lines that were too long to be retained: a program that writes
            no newlines must not fill our memory.
    """

    def __init__(self, fd: int) -> None:
        self._fd = Fd(fd)
        self.at = 0
        self.skipped = 0
        self._rest = b""  # read already, its newline still to come
        self._skipping = False
        self._own: deque[tuple[int, int]] = deque()  # beginnings and ends, in their order
        self._copied = 0  # end of the ranges that own_lines() has returned

    def fileno(self) -> int:
        """Return the descriptor; borrowed."""
        return self._fd.fileno()

    def size(self) -> int:
        """Return the size of the file now.  A truncated file is read from its start again."""
        size = os.fstat(self.fileno()).st_size
        if size < self.at:
            self._restart()
        return size

    def _restart(self) -> None:
        self.at, self._rest, self._skipping, self._copied = 0, b"", False, 0
        self._own.clear()

    def skip(self, begin: int, end: int) -> None:
        """Register a range that this process has written: whole lines, or the part of one.

        Args:
            begin: its first offset.
            end: the offset after its last.
        """
        if begin < (self._own[-1][1] if self._own else self.at):
            self._restart()  # the file was truncated since
        if self._own and begin == self._own[-1][1]:
            begin = self._own.pop()[0]
        self._own.append((begin, end))

    def skip_to_end(self) -> None:
        """Treat all that the file has now as read."""
        self.at = self.size()
        self._own.clear()

    def linked(self) -> bool:
        """Return whether the file has a name: it was not removed."""
        return os.fstat(self.fileno()).st_nlink > 0

    def drop(self) -> int:
        """Read all that the file has now; return the count of the lines of others."""
        total, end = 0, self.size()
        while self.at < end:
            total += len(self.lines(end, 1 << 20))
        return total

    def pending(self) -> bool:
        """Return whether the file has something that was not read."""
        return self.size() > self.at

    def lines(self, end: int, budget: int) -> list[bytes]:
        """Read the next lines of others.

        A last line without a newline is held back until that comes.

        Args:
            end: read up to this offset.
            budget: about how many bytes to read.

        Returns:
            Whole lines, without their newlines.

        Raises:
            OSError: pread(2) failed.
        """
        lines: list[bytes] = []
        while budget > 0 and self.at < end:
            stop = end
            if self._own:
                begin, own_end = self._own[0]
                if begin <= self.at:
                    self._own.popleft()
                    self._end_line(lines)
                    self.at = max(self.at, own_end)
                    budget -= _SKIP_COST
                    continue
                stop = min(end, begin)
            if self._rest and self._ended_since():
                lines.append(self._rest[:-1])
                self._rest = b""
            data = os.pread(self.fileno(), min(_CHUNK, budget, stop - self.at), self.at)
            if not data:
                break
            self.at += len(data)
            budget -= len(data)
            *whole, self._rest = (self._rest + data).split(b"\n")
            if whole and self._skipping:
                del whole[0]
                self._skipping = False
            lines += whole
            if len(self._rest) > _LONGEST or self._skipping:
                self.skipped += not self._skipping
                self._rest, self._skipping = b"", True
        return lines

    def _ended_since(self) -> bool:
        """Return whether a torn line was ended after its last byte was read here."""
        return os.pread(self.fileno(), 1, self.at - 1) == b"\n"

    def own_lines(self) -> list[bytes]:
        """Read the lines of the ranges that :meth:`lines` is still to skip, each of them once."""
        found: list[bytes] = []
        for begin, end in self._own:
            if (begin := max(begin, self._copied)) < end:
                found += os.pread(self.fileno(), end - begin, begin).split(b"\n")
                self._copied = end
        return [line for line in found if line]

    def _end_line(self, lines: list[bytes]) -> None:
        """End a torn line where a line of ours begins."""
        if self._rest:
            lines.append(self._rest)
        self._rest, self._skipping = b"", False

    def close(self) -> None:
        """Close the descriptor."""
        self._fd.close()
