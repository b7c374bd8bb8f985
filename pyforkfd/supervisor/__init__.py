"""Network services of many processes that do not drop a request."""

from __future__ import annotations

from ._handlers import ForkfdHandler, StructlogProcessor, log_uncaught, log_writer, obey
from ._loki_push import LokiConfig
from ._record_writer import RecordWriter
from ._records import Origin

__all__ = [
    "ForkfdHandler",
    "LokiConfig",
    "Origin",
    "RecordWriter",
    "StructlogProcessor",
    "log_uncaught",
    "log_writer",
    "obey",
]
