"""A text that outlives its writer, whole, whenever that is killed."""

from __future__ import annotations

import os
import struct

from pyforkfd._fd import Fd

_HEADER = struct.Struct("=QQQ")  # where the text is, its length, what of it is done
_DONE = 16  # where the last of them is


class Record:
    """A memfd with a text, which is replaced as a whole.  Owns it.

    A new text never overwrites the last: it is written beside it, then the header is.  A write
    of a few bytes within one page is done or not done when SIGKILL comes.
    """

    def __init__(self, fd: Fd | None = None) -> None:
        """Make an empty one, or go on with a predecessor's; taken."""
        self._fd = Fd(os.memfd_create("forkfd-handover")) if fd is None else fd
        self._done = 0
        if fd is None:
            os.pwrite(self._fd.fileno(), _HEADER.pack(_HEADER.size, 0, 0), 0)

    def fileno(self) -> int:
        """The descriptor's number; it stays this object's."""
        return self._fd.fileno()

    def _header(self) -> tuple[int, int, int]:
        at, length, done = _HEADER.unpack(os.pread(self._fd.fileno(), _HEADER.size, 0))
        return at, length, done

    def write(self, text: bytes) -> None:
        """Replace the text; nothing of the new one is done.

        Raises:
            OSError: ENOSPC, ENOMEM; the old text stays.
        """
        at, length, _ = self._header()
        place = _HEADER.size if _HEADER.size + len(text) <= at else at + length
        view = memoryview(text)
        while view:
            view = view[os.pwrite(self._fd.fileno(), view, place + len(text) - len(view)) :]
        self._done = 0
        os.pwrite(self._fd.fileno(), _HEADER.pack(place, len(text), 0), 0)

    def advance(self) -> None:
        """One more of what the text demands is done."""
        self._done += 1
        os.pwrite(self._fd.fileno(), struct.pack("=Q", self._done), _DONE)

    def read(self) -> tuple[bytes, int]:
        """The text, and how much of it is done."""
        at, length, done = self._header()
        return os.pread(self._fd.fileno(), length, at), done

    def close(self) -> None:
        """Close it."""
        self._fd.close()
