"""sys.stdin, stdout and stderr of a worker, on what its 0, 1 and 2 are."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from typing import TextIO

from pyforkfd import _core

_NAMES = ("stdin", "stdout", "stderr")
_FILE, _CLOSED, _OTHER = 0, -1, -2  # of _core.stream_kind; two others are never alike
# Streams that nobody has used, by number and kind of what they are on: to make three of them is
# a tenth of what the birth of a worker costs.
_made: dict[tuple[int, int], TextIO | None] = {}


def prepare_streams() -> None:
    """Make those on the kinds that services have, and those on what we have."""
    if any(_core.stream_kind(fd) == _CLOSED for fd in range(len(_NAMES))):
        return  # what we open would get that number
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    file = os.memfd_create("forkfd-stream")
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(_NAMES)) for fd in range(len(_NAMES))]
    try:
        for sources in ((reader, writer, writer), [null] * 3, [file] * 3, kept):
            for fd, source in enumerate(sources):
                os.dup2(source, fd)
            reopen_streams()
    finally:
        for fd in (reader, writer, null, file, *kept):
            os.close(fd)


def reopen_streams() -> None:
    """Have them as a fresh interpreter has them."""
    for fd, name in enumerate(_NAMES):
        kind = _core.stream_kind(fd)
        if (fd, kind) in _made:
            stream = _made[fd, kind]
            if kind == _FILE and stream is not None:
                stream.buffer.seek(0, os.SEEK_CUR)  # or it would not know where it is
        else:
            stream = _stream(fd, getattr(sys, f"__{name}__"))
            # Some codecs write a mark at the beginning, and a file has one.
            if kind != _OTHER and (kind != _FILE or _is_plain(stream)):
                _made[fd, kind] = stream
        setattr(sys, f"__{name}__", stream)
        setattr(sys, name, stream)


def _is_plain(stream: TextIO | None) -> bool:
    return stream is not None and stream.encoding == "utf-8"


def forget_streams() -> None:
    """Have those that we have now made anew."""
    for fd in range(len(_NAMES)):
        _made.pop((fd, _core.stream_kind(fd)), None)


def _stream(fd: int, old: TextIO | None) -> TextIO | None:
    try:
        raw = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
    except OSError:
        return None  # as the interpreter has it: closed
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
    """Write what is buffered; False if it cannot be: Python then exits with 120."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            done = False
    return done
