"""Triggers of pressure stall information: events when processes wait for a resource."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyforkfd._fd import Fd
from pyforkfd.supervisor.spec._limits import Resource

from ._file import CgroupError


def trigger(
    directory: Path,
    resource: Resource,
    stall_us: int,
    window_us: int,
    *,
    full: bool = False,
    dir_fd: int | None = None,
) -> Fd:
    """Make a trigger for waits of a cgroup's tasks that are longer than a bound.

    Its descriptor has POLLPRI (EPOLLPRI) once per window with such a wait, and POLLERR once
    the cgroup is removed.  Closing it ends the trigger.  Linux 5.2, with CONFIG_PSI; the
    kernel's Documentation/accounting/psi.rst.

    Args:
        directory: of the cgroup.
        resource: that the tasks wait for.
        stall_us: the bound: microseconds of waiting within a window.
        window_us: 500,000 to 10,000,000 microseconds; without CAP_SYS_RESOURCE a multiple of
            2,000,000 (Linux 6.6).
        full: count the time in which all tasks waited, instead of some.
        dir_fd: the cgroup's directory, borrowed; the path is for messages only then.

    Returns:
        The descriptor; the caller owns it.

    Raises:
        ValueError: the stall is not within the window.
        CgroupError: ENOENT or EOPNOTSUPP, where the kernel has no PSI or it is off; EINVAL or
            EPERM, where it refuses the window.
    """
    if not 0 < stall_us <= window_us:
        raise ValueError(f"pressure trigger: {stall_us} is not within {window_us} microseconds")
    path = directory / f"{resource}.pressure"
    text = f"{'full' if full else 'some'} {stall_us} {window_us}"
    try:
        name = path if dir_fd is None else path.name
        fd = Fd(os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd))
    except OSError as error:
        raise _error(error, "open", path) from None
    try:
        os.write(fd.fileno(), text.encode() + b"\0")
    except OSError as error:
        fd.close()
        raise _error(error, f"write {text!r} to", path) from None
    return fd


def _error(error: OSError, operation: str, path: Path) -> CgroupError:
    err = error.errno or 0
    advice = ""
    if err in (errno.ENOENT, errno.EOPNOTSUPP):
        advice = (
            "the kernel has no pressure stall information here: it needs CONFIG_PSI, psi=1 on its "
            "command line where CONFIG_PSI_DEFAULT_DISABLED is set, and 1 in cgroup.pressure"
        )
    elif err in (errno.EINVAL, errno.EPERM):
        advice = (
            "a window is 500000 to 10000000 microseconds, and without CAP_SYS_RESOURCE a "
            "multiple of 2000000"
        )
    return CgroupError(err, operation, path, advice)
