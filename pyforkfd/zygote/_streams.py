"""sys.stdin, stdout and stderr of a worker, for whatever its descriptors 0, 1 and 2 are."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from typing import TextIO

from pyforkfd import _core

_NAMES = ("stdin", "stdout", "stderr")
_FILE, _CLOSED, _OTHER = 0, -1, -2  # of _core.stream_kind; two others are never alike
# Unused streams by descriptor and kind of file: to make three of them costs a tenth of the
# birth of a worker.
_prepared: dict[tuple[int, int], TextIO | None] = {}


def prepare_streams() -> None:
    """Make streams for the kinds of files that services use, and for our own 0 to 2."""
    if any(_core.stream_kind(fd) == _CLOSED for fd in range(len(_NAMES))):
        return  # the files opened below would get that number
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    file = os.memfd_create("forkfd-stream")
    saved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(_NAMES)) for fd in range(len(_NAMES))]
    try:
        for sources in ((reader, writer, writer), [null] * 3, [file] * 3, saved):
            for fd, source in enumerate(sources):
                os.dup2(source, fd)
            reopen_streams()
    finally:
        for fd in (reader, writer, null, file, *saved):
            os.close(fd)


def reopen_streams() -> None:
    """Set the three streams as a fresh interpreter has them."""
    for fd, name in enumerate(_NAMES):
        kind = _core.stream_kind(fd)
        if (fd, kind) in _prepared:
            stream = _prepared[fd, kind]
            if kind == _FILE and stream is not None:
                stream.buffer.seek(0, os.SEEK_CUR)  # reads the offset of this file
        else:
            stream = _stream(fd, getattr(sys, f"__{name}__"))
            # Some codecs write a mark at the beginning of a file, and only there.
            if kind != _OTHER and (kind != _FILE or _is_plain(stream)):
                _prepared[fd, kind] = stream
        setattr(sys, f"__{name}__", stream)
        setattr(sys, name, stream)


def _is_plain(stream: TextIO | None) -> bool:
    return stream is not None and stream.encoding == "utf-8"


def forget_streams() -> None:
    """Forget the prepared streams for the present 0 to 2, so that new ones are made."""
    for fd in range(len(_NAMES)):
        _prepared.pop((fd, _core.stream_kind(fd)), None)


def _stream(fd: int, old: TextIO | None) -> TextIO | None:
    try:
        raw = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
    except OSError:
        return None  # the descriptor is closed; the interpreter does the same
    raw.name = f"<{_NAMES[fd]}>"
    unbuffered = fd == 2 or (isinstance(old, io.TextIOWrapper) and old.write_through)
    return io.TextIOWrapper(
        io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw),
        encoding=old.encoding if old is not None else None,
        errors=old.errors if old is not None else None,
        line_buffering=fd == 2 or raw.isatty(),
        write_through=unbuffered and fd != 2,
    )


def flush() -> bool:
    """Flush stdout and stderr; return False if that failed: Python then exits with 120."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            done = False
    return done
