"""Network services of many processes that do not drop a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyforkfd._lazy import lazy

if TYPE_CHECKING:
    from ._supervisor import Supervisor
    from .logs._record_writer import RecordWriter
    from .logs._records import Origin
    from .spec._spec import (
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
    from .spec._toml import load, loads
    from .spec._validate import validate
    from .worker._logging import ForkfdHandler, StructlogProcessor, log_uncaught, log_writer, obey

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
    # A worker imports this package for its helpers, and pays for nothing else of it.
    _ELSEWHERE = {
        **dict.fromkeys(__all__, "spec._spec"),
        "ForkfdHandler": "worker._logging",
        "Origin": "logs._records",
        "RecordWriter": "logs._record_writer",
        "StructlogProcessor": "worker._logging",
        "Supervisor": "_supervisor",
        "load": "spec._toml",
        "loads": "spec._toml",
        "log_uncaught": "worker._logging",
        "log_writer": "worker._logging",
        "obey": "worker._logging",
        "validate": "spec._validate",
    }
    __getattr__, __dir__ = lazy(__name__, _ELSEWHERE)
