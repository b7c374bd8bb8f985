"""FORKFD_DEBUG: one line for each event, and the settings of that."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from dataclasses import dataclass

from . import _core
from ._sysmon import Sysmon

FORK, EXEC, EPOLL, SCHED = 1, 2, 4, 8  # trace.h
_TOPICS = {"fork": FORK, "exec": EXEC, "epoll": EPOLL}
_KNOWN = "fork=1, exec=1, epoll=1, sched=MILLISECONDS, fd=N or file=PATH"
_summary: Sysmon | None = None  # the thread of sched=


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    topics: int = 0
    sched: int = 0  # milliseconds
    fd: int | None = None
    file: str | None = None


def debug(settings: str) -> None:
    """Write one line for each event from now on; ``""`` ends that.

    Replaces the settings of the environment variable FORKFD_DEBUG and of an earlier call.
    Lines read ``forkfd t=SECONDS pid=N tid=N event=exec stage=executed subject="/bin/true"
    child=N backend="clone3" us=402``: monotonic time, and the microseconds that a step has
    taken.  Each line is one write(2) of less than PIPE_BUF bytes, so lines never mix.

    Args:
        settings: words separated by commas.  ``fork=1``, ``exec=1``, ``epoll=1``: these
            events.  ``sched=500``: every 500 ms one line with threads, descriptors, children
            and the time since the GIL moved, by a thread of its own.  ``fd=N``: lines go to
            this descriptor (borrowed) instead of standard error.  ``file=PATH``: lines are
            appended to this file; a PATH has no comma.  ``...=0`` has no effect.

    Raises:
        ValueError: a word is not known, or its value does not fit.
        OSError: ``fd`` is not open, or ``file`` cannot be opened.
    """
    parsed, complaints = _parse(settings)
    if complaints:
        raise ValueError("; ".join(complaints))
    _apply(parsed)


def read_environment() -> None:
    """Apply FORKFD_DEBUG, once, when the package is loaded; a mistake in it is a warning."""
    text = os.environ.get("FORKFD_DEBUG")
    if not text or (os.geteuid(), os.getegid()) != (os.getuid(), os.getgid()):
        return  # a file must not be written with privileges that its namer has not
    parsed, complaints = _parse(text)
    try:
        _apply(parsed)
    except OSError as error:
        complaints.append(str(error))
    for complaint in complaints:
        warnings.warn(f"FORKFD_DEBUG: {complaint}", RuntimeWarning, stacklevel=3)


def _parse(text: str) -> tuple[_Settings, list[str]]:
    """Return the settings of a text, and sentences about the words that have no meaning."""
    topics = sched = 0
    fd: int | None = None
    file: str | None = None
    complaints = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        if name in _TOPICS and value in ("0", "1"):
            topics = topics | _TOPICS[name] if value == "1" else topics & ~_TOPICS[name]
        elif name == "sched" and value.isdecimal():
            sched = int(value)
        elif name == "fd" and value.isdecimal():
            fd = int(value)
        elif name == "file" and value:
            file = value
        elif name in _TOPICS or name in ("sched", "fd", "file"):
            complaints.append(f"{word!r} has no value that fits; known are {_KNOWN}")
        else:
            complaints.append(f"{name!r} is not known; known are {_KNOWN}")
    if fd is not None and file is not None:
        complaints.append("fd= and file= exclude each other; lines go to the file")
        fd = None
    return _Settings(topics=topics, sched=sched, fd=fd, file=file), complaints


def _apply(wanted: _Settings) -> None:
    global _summary
    number, owned = 2, False
    if wanted.file is not None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY
        number, owned = os.open(wanted.file, flags, 0o666), True
    elif wanted.fd is not None:
        number = wanted.fd
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except (OSError, OverflowError):
            raise OSError(
                errno.EBADF, f"fd={number}: lines cannot go to a descriptor that is not open"
            ) from None
    if _summary is not None:
        _summary.stop()
        _summary = None
    _core.trace_configure(wanted.topics | (SCHED if wanted.sched else 0), number, owned)
    if wanted.sched:
        _summary = Sysmon(
            fd_growth=None,
            gil_stall=None,
            loop_stall=None,
            summary=wanted.sched / 1000,
            restart_after_fork=True,
        )
        _summary.start()
