"""Network services of many processes that do not drop a request."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._loop import Supervisor
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
    "Heartbeat",
    "Limits",
    "Listener",
    "Log",
    "Loki",
    "MemoryGuard",
    "Metrics",
    "Privileges",
    "Problem",
    "Recycle",
    "Restart",
    "Service",
    "SpecError",
    "Supervisor",
    "ZygoteSpec",
    "load",
    "loads",
    "validate",
]

# A worker imports this package for its helpers, and is to pay for nothing else of it.
_ELSEWHERE = {
    "Supervisor": "_loop",
    "load": "_toml",
    "loads": "_toml",
    "validate": "_validate",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_ELSEWHERE.get(name, '_spec')}", __name__)
    found = globals()[name] = getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
