"""fork, exec and file descriptors done right, for Python on Linux.

General layout:

- a child described by data: ``Command``, ``spawn``, ``run``, ``Pipeline``, ``Process``,
  ``ExitStatus`` (``_spawn``, ``_options``, ``_checks``, ``_compile``, ``_run``, ``_process``);
- forks: ``fork``, ``clone``, ``atfork``, ``inheriting``, ``redirected``, ``no_forks``;
- descriptors: ``Fd``, ``cloexec``, ``fd_table``, ``send_fds``, ``FdChannel``, ``bind``,
  ``listen_fds``, ``notify``, ``SharedPage``;
- event loops: ``ForkSafeSelector``, ``audit``, ``new_event_loop``, ``reinit_loop``;
- observation: ``debug``, ``Sysmon``;
- in the interpreter's place: ``pyforkfd.subprocess`` and ``_dropin``;
- packages of their own: ``zygote`` (warmed workers), ``doctor`` (experiments), ``supervisor``
  (services of many processes); the command line is ``cli``;
- ``_core`` is the native part, in ``csrc/``.
"""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        f"pyforkfd's native core is missing or unfit ({error}): install the package "
        "(pip install .), or build it in place (make install)"
    ) from error

from typing import TYPE_CHECKING

from . import _atfork as atfork
from ._channel import ChannelListener, FdChannel
from ._clone import Sibling, clone
from ._debug import debug, read_environment
from ._epoll import Drift, DriftKind, audit, epoll_entries
from ._errors import (
    STAGES,
    ChannelError,
    DescriptorError,
    ForkWarning,
    ListenerError,
    PageError,
    PassingError,
    SpawnError,
    ThreadsError,
)
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
from ._lazy import lazy
from ._listeners import ListenFd, bind, listen_environment, listen_fds, listener_from_fd
from ._notify import notify
from ._options import CommandOptions
from ._page import SharedPage, Slot, SlotSnapshot
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
from ._pipeline import Pipeline, PipelineProcess
from ._preload import preload_library
from ._process import Process
from ._run import Completed, ExitError, OutputLimitError, RunError, RunTimeoutError, run
from ._sections import inheriting, no_forks, redirected
from ._selector import ForkSafeSelector
from ._spawn import Command, spawn
from ._sysmon import Sysmon
from ._sysmon_events import BoundExceeded, FdGrowth, GilStalled, LoopStalled, SysmonEvent
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
    CloneFlag,
    ExitStatus,
    FdSource,
    HasFileno,
    Open,
    SameAs,
    Scheduler,
    Special,
    StrPath,
)

if TYPE_CHECKING:
    from ._dropin._asyncio import create_subprocess_exec
    from ._loops import Transports, new_event_loop, reinit_loop
else:
    # asyncio would be a third of the cost of this import.
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "Transports": "_loops",
            "create_subprocess_exec": "_dropin._asyncio",
            "new_event_loop": "_loops",
            "reinit_loop": "_loops",
        },
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
    "BoundExceeded",
    "Capabilities",
    "ChannelError",
    "ChannelListener",
    "CloneFlag",
    "Command",
    "CommandOptions",
    "Completed",
    "Credentials",
    "DescriptorError",
    "Drift",
    "DriftKind",
    "EpollDetails",
    "EpollWatch",
    "EventfdDetails",
    "ExitError",
    "ExitStatus",
    "Fd",
    "FdChannel",
    "FdDetails",
    "FdDiff",
    "FdGrowth",
    "FdInfo",
    "FdSource",
    "FdTable",
    "FileDetails",
    "ForkSafeSelector",
    "ForkWarning",
    "GilStalled",
    "HasFileno",
    "InotifyDetails",
    "InotifyWatch",
    "ListenFd",
    "ListenerError",
    "LoopStalled",
    "MemfdDetails",
    "Open",
    "OutputLimitError",
    "PageError",
    "PassingError",
    "PidfdDetails",
    "PipeDetails",
    "Pipeline",
    "PipelineProcess",
    "Process",
    "Received",
    "RunError",
    "RunTimeoutError",
    "SameAs",
    "Scheduler",
    "SharedPage",
    "Sibling",
    "SignalfdDetails",
    "Slot",
    "SlotSnapshot",
    "SocketDetails",
    "SpawnError",
    "Special",
    "StrPath",
    "Sysmon",
    "SysmonEvent",
    "ThreadsError",
    "TimerfdDetails",
    "Transports",
    "atfork",
    "audit",
    "bind",
    "cloexec",
    "clone",
    "close_range",
    "create_subprocess_exec",
    "debug",
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
    "pass_credentials",
    "pass_pidfd",
    "peer_credentials",
    "peer_pidfd",
    "preload_library",
    "recv_fds",
    "redirected",
    "reinit_loop",
    "run",
    "same_open_file",
    "send_fds",
    "set_cloexec",
    "spawn",
]
__version__ = "0.1.0.dev0"

read_environment()
