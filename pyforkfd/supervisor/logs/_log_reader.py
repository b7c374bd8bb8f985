"""Reads a file that others append to, by whole lines."""

from __future__ import annotations

import os

from pyforkfd._fd import Fd

_CHUNK = 1 << 16
_LONGEST = 1 << 18  # bytes; what is longer was written by no writer of ours


class Reader:
    """A place in a file that grows.

    Args:
        fd: taken; open for reading, on a description of its own.

    Attributes:
        at: what lies before this offset has been read.
        skipped: lines too long to be kept, so that a program that writes no newlines does
            not fill our memory.
    """

    def __init__(self, fd: int) -> None:
        self._fd = Fd(fd)
        self.at = 0
        self.skipped = 0
        self._rest = b""  # read already, without its newline yet
        self._skipping = False

    def fileno(self) -> int:
        """The descriptor; it stays this object's."""
        return self._fd.fileno()

    def size(self) -> int:
        """Where the file ends now.  One that was truncated is read from its start again."""
        size = os.fstat(self.fileno()).st_size
        if size < self.at:
            self.at, self._rest, self._skipping = 0, b"", False
        return size

    def skip_to_end(self) -> None:
        """Take all that is there as read."""
        self.at = self.size()

    def pending(self) -> bool:
        """There is something that was not read."""
        return self.size() > self.at

    def lines(self, end: int, budget: int) -> list[bytes]:
        """Lines that end before the offset ``end``, about ``budget`` bytes of them.

        A last one without a newline is kept until that comes.
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
