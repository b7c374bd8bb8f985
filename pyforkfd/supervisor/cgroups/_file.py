"""The files of a cgroup, read and written whole, and the error with operation and advice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pyforkfd._fd import Fd


class CgroupError(OSError):
    """An operation on a cgroup that failed.

    Its text is such as ``cannot have the memory controller: write '+memory' to
    /sys/fs/cgroup/x/cgroup.subtree_control: Device or resource busy; ...``.

    Attributes:
        errno: the errno of the kernel.
        filename: the file or directory on which the operation failed.
        operation: the operation, in words.
        advice: the remedy; may be empty.
    """

    advice: str

    def __init__(self, err: int, operation: str, path: Path, advice: str = "") -> None:
        super().__init__(err, os.strerror(err), str(path))
        self.operation = operation
        self.advice = advice

    def __str__(self) -> str:
        text = f"{self.operation} {self.filename}: {self.strerror}"
        return f"{text}; {self.advice}" if self.advice else text

    def __reduce__(self) -> tuple[object, ...]:
        return CgroupError, (self.errno, self.operation, Path(self.filename), self.advice)


def read(path: Path, *, dir_fd: int | None = None) -> str:
    """Read a file of a cgroup.

    Args:
        path: of the file, which an error names.
        dir_fd: the cgroup's directory, borrowed: then only the path's last part counts.

    Raises:
        CgroupError: ENOENT (the cgroup does not exist, or neither the kernel nor the parent
            has the controller of the file), ENODEV (the cgroup was removed), or another errno
            of open(2) or read(2).
    """
    try:
        fd = _open(path, os.O_RDONLY, dir_fd)
        try:
            parts = []
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(error.errno or 0, "read", path) from None
    return b"".join(parts).decode()


def write(path: Path, text: str, *, dir_fd: int | None = None) -> None:
    """Write a file of a cgroup in one system call, which the kernel takes as one setting.

    Args:
        path: as for :func:`read`.
        text: the setting.
        dir_fd: as for :func:`read`.

    Raises:
        CgroupError: open(2) or write(2) failed.
    """
    try:
        fd = _open(path, os.O_WRONLY, dir_fd)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(error.errno or 0, f"write {text!r} to", path) from None


def open_directory(path: Path) -> Fd:
    """Open the directory of a cgroup; the caller owns the descriptor.

    Raises:
        CgroupError: ENOENT, the cgroup does not exist; or another errno of open(2).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return Fd(os.open(path, flags))
    except OSError as error:
        raise CgroupError(error.errno or 0, "open the cgroup", path) from None


def flat_keyed(text: str) -> Mapping[str, int]:
    """Parse the kernel's "flat keyed" form: a name and a number on each line."""
    return {name: int(value) for name, value in map(str.split, text.splitlines())}


def _open(path: Path, flags: int, dir_fd: int | None) -> int:
    name = path if dir_fd is None else path.name
    return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
