"""fork, exec and file descriptors done right, for Python on Linux."""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        f"pyforkfd's native core is missing or unfit ({error}): install the package "
        "(pip install .) and import it from outside the source tree"
    ) from error

from ._channel import ChannelListener, FdChannel
from ._clone import CloneFlag, Sibling, clone
from ._errors import (
    STAGES,
    ChannelError,
    DescriptorError,
    ListenerError,
    PassingError,
    SpawnError,
    ThreadsError,
)
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
from ._passing import (
    Credentials,
    Received,
    pass_credentials,
    pass_pidfd,
    peer_credentials,
    peer_pidfd,
    recv_fds,
    send_fds,
)
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
    "Address",
    "Backend",
    "Capabilities",
    "ChannelError",
    "ChannelListener",
    "CloneFlag",
    "Command",
    "Credentials",
    "DescriptorError",
    "EpollDetails",
    "EpollWatch",
    "EventfdDetails",
    "ExitStatus",
    "Fd",
    "FdChannel",
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
    "PassingError",
    "PidfdDetails",
    "PipeDetails",
    "Process",
    "Received",
    "SameAs",
    "Scheduler",
    "Sibling",
    "SignalfdDetails",
    "SocketDetails",
    "SpawnError",
    "Special",
    "StrPath",
    "ThreadsError",
    "TimerfdDetails",
    "bind",
    "cloexec",
    "clone",
    "close_range",
    "diff",
    "fd_table",
    "inheriting",
    "listen_environment",
    "listen_fds",
    "listener_from_fd",
    "notify",
    "pass_credentials",
    "pass_pidfd",
    "peer_credentials",
    "peer_pidfd",
    "recv_fds",
    "same_open_file",
    "send_fds",
    "set_cloexec",
    "spawn",
]
__version__ = "0.1.0.dev0"
