"""A reader of whole lines from a file that other processes append to."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyforkfd._fd import Fd

_CHUNK = 1 << 16
_LONGEST = 1 << 18  # bytes; no writer of ours makes a longer line


class Reader:
    """A reading position in a file that grows.

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

    def fileno(self) -> int:
        """Return the descriptor; borrowed."""
        return self._fd.fileno()

    def size(self) -> int:
        """Return the size of the file now.  A truncated file is read from its start again."""
        size = os.fstat(self.fileno()).st_size
        if size < self.at:
            self.at, self._rest, self._skipping = 0, b"", False
        return size

    def skip_to_end(self) -> None:
        """Treat all that the file has now as read."""
        self.at = self.size()

    def linked(self) -> bool:
        """Return whether the file has a name: it was not removed."""
        return os.fstat(self.fileno()).st_nlink > 0

    def drop(self, counts: Callable[[bytes], bool]) -> int:
        """Read all that the file has now, without a result but a count.

        Args:
            counts: whether a line counts.
        """
        total, end = 0, self.size()
        while self.at < end:
            total += sum(map(counts, self.lines(end, 1 << 20)))
        return total

    def pending(self) -> bool:
        """Return whether the file has something that was not read."""
        return self.size() > self.at

    def lines(self, end: int, budget: int) -> list[bytes]:
        """Read the next lines.  A last line without a newline is held back until that comes.

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
            data = os.pread(self.fileno(), min(_CHUNK, budget, end - self.at), self.at)
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

    def close(self) -> None:
        """Close the descriptor."""
        self._fd.close()
