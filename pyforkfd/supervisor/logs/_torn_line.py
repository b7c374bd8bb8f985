"""The end of a record that was cut short, so that the next writer's begins a new line."""

from __future__ import annotations

import os

_WINDOW = 1 << 17  # bytes at the end of the file: other writers may have written since


def end_torn_line(fd: int, begun: bytes) -> bool:
    """Replace the last byte of a record that was cut short by a newline.

    The disk has no space for one more byte, but it has this one.  Any other process may be the
    next to write, and knows nothing of the torn record.

    Args:
        fd: the file, with O_APPEND; borrowed.
        begun: the bytes that were written, the last at the end.

    Returns:
        False: the record was not found, or the file cannot be opened again.
    """
    begun = begun.lstrip(b"\n")
    if not begun:
        return True  # only the newline before it was written
    try:
        # Another description: O_APPEND would move the byte to the end.
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        size = os.fstat(again).st_size
        start = max(0, size - _WINDOW)
        data = os.pread(again, size - start, start)
        if data.endswith(begun):
            at = size
        elif (found := data.rfind(b"\n" + begun + b"{")) >= 0:  # another record has followed it
            at = start + found + 1 + len(begun)
        else:
            return False
        return os.pwrite(again, b"\n", at - 1) == 1
    except OSError:
        return False
    finally:
        os.close(again)
