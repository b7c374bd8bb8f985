"""The usual path of a service's control socket, for a configuration without ``path``."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator

_SYSTEM = "/run/pyforkfd"
_SUFFIX = ".sock"


def default_path(name: str, *, create: bool = True) -> str:
    """Return the path for a service of this user, after creating its directory.

    ``/run/pyforkfd/NAME.sock`` for root, else below ``$XDG_RUNTIME_DIR``; where that is not
    set, in a directory below ``$TMPDIR`` or ``/tmp`` that no other user can write to.

    Args:
        name: name of the service.
        create: whether to create the directory; else it is only looked at.

    Raises:
        OSError: the directory cannot be created, or others own it or can write to it.
    """
    directory = _directory()
    # Others may enter root's: the socket's mode and allow_users decide what they may do.
    mode = 0o755 if directory == _SYSTEM else 0o700
    if not create and not os.path.lexists(directory):
        _demand_creatable(directory)
        return os.path.join(directory, name + _SUFFIX)
    try:
        os.mkdir(directory, mode)
    except FileExistsError:
        pass
    if not _is_ours(directory):
        raise OSError(errno.EPERM, "is not a directory that only this user can write to", directory)
    return os.path.join(directory, name + _SUFFIX)


def _demand_creatable(directory: str) -> None:
    """Demand that mkdir(2) would create a directory.

    Raises:
        OSError: its parent does not exist, or cannot be written to.
    """
    parent = os.path.dirname(directory)
    os.stat(parent)
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory)


def find() -> Iterator[tuple[str, str]]:
    """Yield name and path of every control socket at its usual place; some have no listener."""
    for directory in dict.fromkeys((_directory(), _SYSTEM)):
        if directory != _SYSTEM and not _is_ours(directory):
            continue
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            if name.endswith(_SUFFIX):
                yield name.removesuffix(_SUFFIX), os.path.join(directory, name)


def _directory() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0:
        return _SYSTEM
    if runtime and os.path.isabs(runtime):
        return os.path.join(runtime, "pyforkfd")
    return os.path.join(tempfile.gettempdir(), f"pyforkfd-{os.geteuid()}")


def _is_ours(directory: str) -> bool:
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o022
    )
