"""Where the control socket of a service is, if its configuration does not say."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator

_SYSTEM = "/run/pyforkfd"
_SUFFIX = ".sock"


def default_path(name: str) -> str:
    """The path for a service of ours; its directory is made if it is not there.

    ``/run/pyforkfd/NAME.sock`` for root, else below ``$XDG_RUNTIME_DIR``; where that is not
    set, in a directory of ours below ``$TMPDIR`` or ``/tmp`` that nobody else can write to.

    Args:
        name: of the service.

    Raises:
        OSError: the directory cannot be made, or is somebody else's.
    """
    directory = _directory()
    # Others may enter root's: what they may do is for the socket's mode and allow_users.
    mode = 0o755 if directory == _SYSTEM else 0o700
    try:
        os.mkdir(directory, mode)
    except FileExistsError:
        pass
    if not _is_ours(directory):
        raise OSError(errno.EPERM, "is not a directory that only we can write to", directory)
    return os.path.join(directory, name + _SUFFIX)


def find() -> Iterator[tuple[str, str]]:
    """Name and path of every control socket that may be ours to use; some may be dead."""
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
