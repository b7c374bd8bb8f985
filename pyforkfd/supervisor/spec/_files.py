"""The reading of files that a user names, and that may be anything."""

from __future__ import annotations

import errno
import os
import stat

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file of bounded size, without waiting for anything but its disk.

    Args:
        path: of the file; a link to one is one.
        most: bytes that it may have.

    Raises:
        OSError: the file cannot be read, is no regular file (EINVAL, EISDIR) or too long
            (EFBIG); the error names the path.
        ValueError: the path has a null byte.
    """
    # O_NONBLOCK: the open of a pipe or a device would wait for its other end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind != stat.S_IFREG:
            number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
            text = f"is {_KINDS.get(kind, 'no file')}; write the path of a regular file"
            raise OSError(number, text, os.fspath(path))
        parts = []
        left = most + 1
        while left > 0 and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if left <= 0:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", os.fspath(path))
    return b"".join(parts)
