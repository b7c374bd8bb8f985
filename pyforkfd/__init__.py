"""fork, exec and file descriptors done right, for Python on Linux."""

from __future__ import annotations

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        f"pyforkfd's native core is missing or unfit ({error}): install the package "
        "(pip install .) and import it from outside the source tree"
    ) from error

from ._errors import STAGES, SpawnError
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
    "Open",
    "Process",
    "SameAs",
    "Scheduler",
    "SpawnError",
    "Special",
    "StrPath",
    "spawn",
]
__version__ = "0.1.0.dev0"
