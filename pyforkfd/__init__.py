"""fork, exec and file descriptors done right, for Python on Linux."""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        f"pyforkfd's native core is missing or unfit ({error}): install the package "
        "(pip install .) and import it from outside the source tree"
    ) from error

from ._asyncio import create_subprocess_exec
from ._errors import STAGES, ListenerError, SpawnError
from ._fd import Fd, cloexec, close_range, inheriting, same_open_file, set_cloexec
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
from ._listeners import ListenFd, bind, listen_environment, listen_fds, listener_from_fd
from ._notify import notify
from ._pipeline import Pipeline, PipelineProcess
from ._process import Process
from ._run import (
    CommandOptions,
    Completed,
    ExitError,
    OutputLimitError,
    RunError,
    RunTimeoutError,
    run,
)
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
    "CommandOptions",
    "Completed",
    "EpollDetails",
    "EpollWatch",
    "EventfdDetails",
    "ExitError",
    "ExitStatus",
    "Fd",
    "FdDetails",
    "FdDiff",
    "FdInfo",
    "FdSource",
    "FdTable",
    "FileDetails",
    "HasFileno",
    "InotifyDetails",
    "InotifyWatch",
    "ListenFd",
    "ListenerError",
    "MemfdDetails",
    "Open",
    "OutputLimitError",
    "PidfdDetails",
    "PipeDetails",
    "Pipeline",
    "PipelineProcess",
    "Process",
    "RunError",
    "RunTimeoutError",
    "SameAs",
    "Scheduler",
    "SignalfdDetails",
    "SocketDetails",
    "SpawnError",
    "Special",
    "StrPath",
    "TimerfdDetails",
    "bind",
    "cloexec",
    "close_range",
    "create_subprocess_exec",
    "diff",
    "fd_table",
    "inheriting",
    "listen_environment",
    "listen_fds",
    "listener_from_fd",
    "notify",
    "run",
    "same_open_file",
    "set_cloexec",
    "spawn",
]
__version__ = "0.1.0.dev0"
