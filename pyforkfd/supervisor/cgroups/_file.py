"""One file of a cgroup, read or written whole; what failed, on what, and what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pyforkfd._fd import Fd


class CgroupError(OSError):
    """Something of a cgroup could not be done.

    It reads ``cannot enable the memory controller: write '+memory' to
    /sys/fs/cgroup/x/cgroup.subtree_control: Device or resource busy; ...``.

    Attributes:
        errno: what the kernel said.
        filename: the file or directory that it was said of.
        advice: what can be done about it; may be empty.
    """

    advice: str

    def __init__(self, err: int, what: str, path: Path, advice: str = "") -> None:
        super().__init__(err, os.strerror(err), str(path))
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        told = f"{self.what} {self.filename}: {self.strerror}"
        return f"{told}; {self.advice}" if self.advice else told

    def __reduce__(self) -> tuple[object, ...]:
        return CgroupError, (self.errno, self.what, Path(self.filename), self.advice)


def read(path: Path, *, dir_fd: int | None = None) -> str:
    """What the file says.

    Args:
        path: its path; what an error names.
        dir_fd: the cgroup's directory, borrowed: then only the path's last part counts.

    Raises:
        CgroupError: ENOENT (no such cgroup, or the kernel or the parent has not what it
            belongs to), ENODEV (the cgroup was removed), or what else the kernel says.
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
    """Write it in one call, which is what the kernel takes as one setting.

    Args:
        path: as for :func:`read`.
        text: what is written.
        dir_fd: as for :func:`read`.

    Raises:
        CgroupError: what open(2) or write(2) says.
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
    """The cgroup's directory, which the caller owns.

    Raises:
        CgroupError: ENOENT, there is none; or what else open(2) says.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return Fd(os.open(path, flags))
    except OSError as error:
        raise CgroupError(error.errno or 0, "open the cgroup", path) from None


def flat_keyed(text: str) -> Mapping[str, int]:
    """The kernel's "flat keyed" form: a name and a number on each line."""
    return {name: int(value) for name, value in map(str.split, text.splitlines())}


def _open(path: Path, flags: int, dir_fd: int | None) -> int:
    name = path if dir_fd is None else path.name
    return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
