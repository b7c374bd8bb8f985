"""fork, exec and file descriptors done right, for Python on Linux."""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        f"pyforkfd's native core is missing or unfit ({error}): install the package "
        "(pip install .) and import it from outside the source tree"
    ) from error

from ._errors import STAGES, ListenerError, SpawnError
from ._listeners import ListenFd, bind, listen_environment, listen_fds, listener_from_fd
from ._notify import notify
from ._process import Process
from ._spawn import Command, spawn
from ._types import (
    CLOSED,
    DEVNULL,
    INHERIT,
    KEEP,
    PIPE,
    PIPE_FROM_CHILD,
    PIPE_TO_CHILD,
    STDOUT,
    Backend,
    Capabilities,
    ExitStatus,
    FdSource,
    HasFileno,
    Open,
    SameAs,
    Scheduler,
    Special,
    StrPath,
)

__all__ = [
    "CLOSED",
    "DEVNULL",
    "INHERIT",
    "KEEP",
    "PIPE",
    "PIPE_FROM_CHILD",
    "PIPE_TO_CHILD",
    "STAGES",
    "STDOUT",
    "Backend",
    "Capabilities",
    "Command",
    "ExitStatus",
    "FdSource",
    "HasFileno",
    "ListenFd",
    "ListenerError",
    "Open",
    "Process",
    "SameAs",
    "Scheduler",
    "SpawnError",
    "Special",
    "StrPath",
    "bind",
    "listen_environment",
    "listen_fds",
    "listener_from_fd",
    "notify",
    "spawn",
]
__version__ = "0.1.0.dev0"
