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

import os
from typing import TYPE_CHECKING

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
from ._lazy import lazy
from ._options import CommandOptions
from ._pipeline import Pipeline, PipelineProcess
from ._process import Process
from ._run import Completed, ExitError, OutputLimitError, RunError, RunTimeoutError, run
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
    from . import _atfork as atfork
    from ._channel import ChannelListener, FdChannel
    from ._clone import Sibling, clone
    from ._debug import debug
    from ._dropin._asyncio import create_subprocess_exec
    from ._epoll import Drift, DriftKind, audit, epoll_entries
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
    from ._preload import preload_library
    from ._sections import inheriting, no_forks, redirected
    from ._selector import ForkSafeSelector
    from ._sysmon import Sysmon
    from ._sysmon_events import BoundExceeded, FdGrowth, GilStalled, LoopStalled, SysmonEvent
else:
    # What starts a program is here; the rest would be most of the cost of this import.
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "atfork": "_atfork.",
            "Address": "_fd_details",
            "BoundExceeded": "_sysmon_events",
            "ChannelListener": "_channel",
            "Credentials": "_passing",
            "Drift": "_epoll",
            "DriftKind": "_epoll",
            "EpollDetails": "_fd_details",
            "EpollWatch": "_fd_details",
            "EventfdDetails": "_fd_details",
            "Fd": "_fd",
            "FdChannel": "_channel",
            "FdDetails": "_fd_details",
            "FdDiff": "_fd_table",
            "FdGrowth": "_sysmon_events",
            "FdInfo": "_fd_table",
            "FdTable": "_fd_table",
            "FileDetails": "_fd_details",
            "ForkSafeSelector": "_selector",
            "GilStalled": "_sysmon_events",
            "InotifyDetails": "_fd_details",
            "InotifyWatch": "_fd_details",
            "ListenFd": "_listeners",
            "LoopStalled": "_sysmon_events",
            "MemfdDetails": "_fd_details",
            "PidfdDetails": "_fd_details",
            "PipeDetails": "_fd_details",
            "Received": "_passing",
            "SharedPage": "_page",
            "Sibling": "_clone",
            "SignalfdDetails": "_fd_details",
            "Slot": "_page",
            "SlotSnapshot": "_page",
            "SocketDetails": "_fd_details",
            "Sysmon": "_sysmon",
            "SysmonEvent": "_sysmon_events",
            "TimerfdDetails": "_fd_details",
            "Transports": "_loops",
            "audit": "_epoll",
            "bind": "_listeners",
            "cloexec": "_fd",
            "clone": "_clone",
            "close_range": "_fd",
            "create_subprocess_exec": "_dropin._asyncio",
            "debug": "_debug",
            "diff": "_fd_table",
            "epoll_entries": "_epoll",
            "fd_table": "_fd_table",
            "fork": "_fork",
            "inheriting": "_sections",
            "listen_environment": "_listeners",
            "listen_fds": "_listeners",
            "listener_from_fd": "_listeners",
            "new_event_loop": "_loops",
            "no_forks": "_sections",
            "notify": "_notify",
            "pass_credentials": "_passing",
            "pass_pidfd": "_passing",
            "peer_credentials": "_passing",
            "peer_pidfd": "_passing",
            "preload_library": "_preload",
            "recv_fds": "_passing",
            "redirected": "_sections",
            "reinit_loop": "_loops",
            "same_open_file": "_fd",
            "send_fds": "_passing",
            "set_cloexec": "_fd",
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

if os.environ.get("FORKFD_DEBUG"):
    from ._debug import read_environment

    read_environment()
