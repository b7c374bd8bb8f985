"""Paths of files, programs and sockets: refused where another user could have placed them."""

from __future__ import annotations

import errno
import os
import shutil

from ._trust import UntrustedPathError, is_privileged, is_trusted, other_writers, user_name
from ._trusted_paths import CALM, demand_regular, refusal, walk


def split(path: str) -> tuple[str, str]:
    """Return directory and name of a file's path."""
    directory, name = os.path.split(path)
    return directory or ".", name


def demand_socket_place(path: str, *, ours: bool = False) -> None:
    """Refuse the path of a socket that another user could have bound elsewhere.

    bind(2) has no descriptor of a directory to start from, so it must not matter where another
    user lets the directories above lead.

    Args:
        path: of the socket.
        ours: nobody may replace the socket either: root's own commands connect to it.

    Raises:
        UntrustedPathError: another user decides.
        OSError: there is no such directory.
    """
    if not is_privileged():
        return
    directory, name = split(path)
    with walk(directory) as found:
        if ours:
            found.demand_ours(name)
        found.demand_lasting_names(name)
        if found.inherited:
            user = user_name(found.owner or 0)
            raise refusal(
                directory,
                f"a directory above it is {user}'s, who decides where it leads: name one in a "
                "directory that only root may write to",
            )


def demand_directory(path: str) -> None:
    """Refuse the path of a file whose directory another user could have prepared.

    Raises:
        UntrustedPathError: another user decides where the path leads.
        OSError: there is no such directory.
    """
    walk(split(path)[0]).fd.close()


def demand_log_place(path: str) -> None:
    """Refuse the path of a log that another user has prepared or could replace.

    Raises:
        UntrustedPathError: another user decides.
        OSError: the file does not exist yet, or is not regular.
    """
    directory, name = split(path)
    with walk(directory) as found:
        found.demand_lasting_names("the log")
        os.close(found.open_file(name, os.O_RDONLY))


def demand_trusted_program(program: str, search: str | None) -> None:
    """Refuse a program that another user may write or replace, if we are privileged.

    Args:
        program: a path, or a name to search.
        search: PATH.

    Raises:
        UntrustedPathError: another user may.
    """
    path = shutil.which(program, path=search) if is_privileged() else None
    if path is None:
        return
    try:
        os.close(_open_trusted(path))
    except UntrustedPathError:
        raise
    except OSError:
        return  # to be reported when it is executed


def who_may_change(path: str) -> str:
    """Return who may write or replace a file that we act on, and a remedy, if we are privileged.

    Args:
        path: of a file.

    Returns:
        A text that begins with a path; empty: nobody but root and this user, we have no privileges,
        or the file cannot be opened, which is for its reader to report.
    """
    if not is_privileged():
        return ""
    try:
        os.close(_open_trusted(path))
    except UntrustedPathError as error:
        return str(error)
    except (OSError, ValueError):
        pass
    return ""


def _open_trusted(path: str) -> int:
    directory, name = split(path)
    try:
        with walk(directory) as found:
            found.demand_ours(name)
            fd = found.open_file(name, os.O_RDONLY)
    except UntrustedPathError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        info = os.fstat(fd)
        if not is_trusted(info.st_uid):
            raise refusal(path, f"is {user_name(info.st_uid)}'s, who may write to it: chown root")
        if who := other_writers(fd, info):
            raise refusal(path, f"{who} may write to it: chmod go-w")
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_file(path: str | os.PathLike[str], most: int, *, trusted: bool = False) -> bytes:
    """Read a regular file of bounded size, without waiting for anything but its disk.

    Args:
        path: of the file; a link to one is one.
        most: bytes that it may have.
        trusted: refuse a file that another user may write or replace, if we are privileged.

    Raises:
        UntrustedPathError: another user may.
        OSError: the file cannot be read, is no regular file (EINVAL, EISDIR) or too long
            (EFBIG); the error names the path.
        ValueError: the path has a null byte.
    """
    path = os.fspath(path)
    strict = trusted and is_privileged()
    fd = _open_trusted(path) if strict else os.open(path, os.O_RDONLY | CALM)
    try:
        demand_regular(os.fstat(fd), path)
        parts, left = [], most + 1
        while left > 0 and (part := os.read(fd, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if left <= 0:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", path)
    return b"".join(parts)
