"""fork, exec and file descriptors done right, for Python on Linux."""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        f"pyforkfd's native core is missing or unfit ({error}): install the package "
        "(pip install .) and import it from outside the source tree"
    ) from error

from . import _atfork as atfork
from ._epoll import Drift, DriftKind, audit, epoll_entries
from ._errors import STAGES, ForkWarning, ListenerError, SpawnError
from ._fd import Fd, cloexec, close_range, same_open_file, set_cloexec
from ._fd_details import (
    Address,
    EpollDetails,
    EpollWatch,
    EventfdDetails,
    FdDetails,
    FileDetails,
    InotifyDetails,
    InotifyWatch,
    MemfdDetails,
    PidfdDetails,
    PipeDetails,
    SignalfdDetails,
    SocketDetails,
    TimerfdDetails,
)
from ._fd_table import FdDiff, FdInfo, FdTable, diff, fd_table
from ._fork import fork
from ._listeners import ListenFd, bind, listen_environment, listen_fds, listener_from_fd
from ._loops import Transports, new_event_loop, reinit_loop
from ._notify import notify
from ._process import Process
from ._sections import inheriting, no_forks, redirected
from ._selector import ForkSafeSelector
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
    "Address",
    "Backend",
    "Capabilities",
    "Command",
    "Drift",
    "DriftKind",
    "EpollDetails",
    "EpollWatch",
    "EventfdDetails",
    "ExitStatus",
    "Fd",
    "FdDetails",
    "FdDiff",
    "FdInfo",
    "FdSource",
    "FdTable",
    "FileDetails",
    "ForkSafeSelector",
    "ForkWarning",
    "HasFileno",
    "InotifyDetails",
    "InotifyWatch",
    "ListenFd",
    "ListenerError",
    "MemfdDetails",
    "Open",
    "PidfdDetails",
    "PipeDetails",
    "Process",
    "SameAs",
    "Scheduler",
    "SignalfdDetails",
    "SocketDetails",
    "SpawnError",
    "Special",
    "StrPath",
    "TimerfdDetails",
    "Transports",
    "atfork",
    "audit",
    "bind",
    "cloexec",
    "close_range",
    "diff",
    "epoll_entries",
    "fd_table",
    "fork",
    "inheriting",
    "listen_environment",
    "listen_fds",
    "listener_from_fd",
    "new_event_loop",
    "no_forks",
    "notify",
    "redirected",
    "reinit_loop",
    "same_open_file",
    "set_cloexec",
    "spawn",
]
__version__ = "0.1.0.dev0"
