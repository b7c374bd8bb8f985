"""The directory for temporary files, in which sockets are bound."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress

from pyforkfd._trusted_paths import walk

_LONGEST = 107 - len("/pyforkfd-12345678/notify")  # sun_path, unix(7)


def short_directory() -> str:
    """Return a directory for temporary files that leaves space for a socket's name in it.

    That of TMPDIR, or one in which no other user can replace what is ours.

    Raises:
        OSError: there is none, or its path is too long.
    """
    directory = _trusted()
    if len(os.fsencode(directory)) > _LONGEST:
        most = f"set TMPDIR to at most {_LONGEST} bytes"
        text = f"is too long for the path of a socket in it; {most}"
        raise OSError(errno.ENAMETOOLONG, text, directory)
    return directory


def _trusted() -> str:
    usual = tempfile.gettempdir()
    for path in (usual, "/run", "/tmp"):
        with suppress(OSError), walk(path) as directory:
            directory.demand_ours("our sockets")
            return path
    text = "other users may replace sockets in it, and in /run and /tmp; set TMPDIR to another"
    raise PermissionError(errno.EPERM, text, usual)
