"""A text that is whole whenever its writer is killed."""

from __future__ import annotations

import os
import struct

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd

_HEADER = struct.Struct("=QQQ")  # the text's offset and length, and its progress
_PROGRESS_AT = 16  # offset of the progress in the header


class Record(Closing):
    """A memfd with a text that is replaced or added to, and a count of its actions that are done.

    A new text never overwrites the last one: it is written beside it or after it, then the
    header is written.  SIGKILL does not split a write of a few bytes within one page.  Owns the
    memfd.
    """

    def __init__(self, fd: Fd | None = None) -> None:
        """Create an empty record, or continue a predecessor's.

        Args:
            fd: the predecessor's memfd; taken.
        """
        self._fd = Fd(os.memfd_create("forkfd-handover")) if fd is None else fd
        self._done = 0
        if fd is None:
            os.pwrite(self._fd.fileno(), _HEADER.pack(_HEADER.size, 0, 0), 0)

    def fileno(self) -> int:
        """Return the number of the memfd; borrowed."""
        return self._fd.fileno()

    def _header(self) -> tuple[int, int, int]:
        offset, length, done = _HEADER.unpack(os.pread(self._fd.fileno(), _HEADER.size, 0))
        return offset, length, done

    def write(self, text: bytes) -> None:
        """Replace the text and reset the count.

        Raises:
            OSError: ENOSPC, ENOMEM; the old text stays.
        """
        offset, length, _ = self._header()
        place = _HEADER.size if _HEADER.size + len(text) <= offset else offset + length
        self._write(text, place)
        self._point_to(place, len(text))

    def append(self, text: bytes) -> None:
        """Add to the text and reset the count.

        Raises:
            OSError: ENOSPC, ENOMEM; the old text stays.
        """
        offset, length, _ = self._header()
        self._write(text, offset + length)
        self._point_to(offset, length + len(text))

    def _write(self, text: bytes, place: int) -> None:
        view = memoryview(text)
        while view:
            view = view[os.pwrite(self._fd.fileno(), view, place + len(text) - len(view)) :]

    def _point_to(self, offset: int, length: int) -> None:
        self._done = 0
        os.pwrite(self._fd.fileno(), _HEADER.pack(offset, length, 0), 0)

    def advance(self) -> None:
        """Count one more action of the text as done."""
        self._done += 1
        os.pwrite(self._fd.fileno(), struct.pack("=Q", self._done), _PROGRESS_AT)

    def read(self) -> tuple[bytes, int]:
        """Return the text, and the number of its actions that are done."""
        offset, length, done = self._header()
        return os.pread(self._fd.fileno(), length, offset), done

    def close(self) -> None:
        """Close the memfd."""
        self._fd.close()
