"""A Unix socket at a path: a dead one replaced, in a directory that others may write to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK_PATIENCE = 0.2  # seconds


def unix_listener(
    path: str,
    mode: int | None,
    backlog: int,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    """Make the socket of :func:`bind` for ``unix:/path``."""
    made = socket.socket(socket.AF_UNIX, kind)
    directory = -1
    try:
        if mode is not None:
            os.fchmod(made.fileno(), mode)  # what bind(2) gives the path, less the umask
        above, name = os.path.split(path)
        directory = os.open(above or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with _locked(directory):
                if not _is_stale(path):
                    raise
                os.unlink(name, dir_fd=directory)
                made.bind(path)
        if mode is not None:
            _set_mode(directory, name, path, mode)
        if kind != socket.SOCK_DGRAM:
            made.listen(backlog)
    except BaseException:
        made.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return made


def _set_mode(directory: int, name: str, path: str, mode: int) -> None:
    """Set the permissions of a socket's path; never those of what was put in its place."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EPERM, "was replaced by another process", path)
        # The umask took some; another user's socket is that user's affair.
        if stat.S_IMODE(found.st_mode) != mode and found.st_uid == os.geteuid():
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


@contextmanager
def _locked(directory: int) -> Iterator[None]:
    """Lock a directory, so that one process at a time replaces a path: flock(2), no lock file.

    Whoever may read the directory may lock it, and for as long as they like.  We hold the lock
    for microseconds: what is held for longer is no lock of ours, and is passed over.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        until = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    break
                time.sleep(0.002)
        yield
    finally:
        os.close(fd)


def _is_stale(path: str) -> bool:
    """Return whether no socket is bound to a path any more.

    Probed by a datagram socket: the kernel refuses it for its type (EPROTOTYPE), so that a
    stream's listener never notices, unix(7).
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED
