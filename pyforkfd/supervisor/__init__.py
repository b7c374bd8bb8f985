"""Network services of many processes that do not drop a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyforkfd._lazy import lazy

if TYPE_CHECKING:
    from ._handlers import ForkfdHandler, StructlogProcessor, log_uncaught, log_writer, obey
    from ._loop import Supervisor
    from ._record_writer import RecordWriter
    from ._records import Origin
    from ._spec import (
        Component,
        Control,
        Heartbeat,
        Limits,
        Listener,
        Log,
        Loki,
        MemoryGuard,
        Metrics,
        Pressure,
        Privileges,
        Problem,
        Recycle,
        Restart,
        Service,
        SpecError,
        ZygoteSpec,
    )
    from ._toml import load, loads
    from ._validate import validate

__all__ = [
    "Component",
    "Control",
    "ForkfdHandler",
    "Heartbeat",
    "Limits",
    "Listener",
    "Log",
    "Loki",
    "MemoryGuard",
    "Metrics",
    "Origin",
    "Pressure",
    "Privileges",
    "Problem",
    "RecordWriter",
    "Recycle",
    "Restart",
    "Service",
    "SpecError",
    "StructlogProcessor",
    "Supervisor",
    "ZygoteSpec",
    "load",
    "loads",
    "log_uncaught",
    "log_writer",
    "obey",
    "validate",
]

if not TYPE_CHECKING:
    # A worker imports this package for its helpers, and is to pay for nothing else of it.
    _ELSEWHERE = {
        **dict.fromkeys(__all__, "_spec"),
        "ForkfdHandler": "_handlers",
        "Origin": "_records",
        "RecordWriter": "_record_writer",
        "StructlogProcessor": "_handlers",
        "Supervisor": "_loop",
        "load": "_toml",
        "loads": "_toml",
        "log_uncaught": "_handlers",
        "log_writer": "_handlers",
        "obey": "_handlers",
        "validate": "_validate",
    }
    __getattr__, __dir__ = lazy(__name__, _ELSEWHERE)
