"""Network services of many processes that do not drop a request."""

from __future__ import annotations
