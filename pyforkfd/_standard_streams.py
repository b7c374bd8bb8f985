"""Descriptors 0, 1 and 2 of this process, which its starter may have closed.

``nohup``, cron and init scripts start daemons so.  What is opened next would get such a number,
and what is meant for standard output would be written into it.
"""

from __future__ import annotations

import io
import os
import sys

_NAMES = ("stdin", "stdout", "stderr")


def open_standard_descriptors() -> None:
    """Open /dev/null at each of 0, 1 and 2 that is closed; call it before anything is opened.

    Raises:
        OSError: /dev/null cannot be opened.
    """
    for fd in range(len(_NAMES)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(fd, True)


def restore_standard_streams() -> None:
    """Do the same, and make those of sys.stdin, stdout and stderr that are None.

    The interpreter makes none for a descriptor that is closed when it starts.

    Raises:
        OSError: /dev/null cannot be opened.
    """
    open_standard_descriptors()
    for fd, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            raw = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
            buffer = io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw)
            stream = io.TextIOWrapper(buffer, errors="backslashreplace", line_buffering=fd == 2)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def flush_streams() -> None:
    """Flush sys.stdout and sys.stderr, as far as they exist and can be written."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # the reader has gone, the disk is full, or it is closed
