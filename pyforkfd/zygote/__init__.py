"""A warmed Python worker in a millisecond or two, from any parent.

A :class:`Zygote` is a small process that has imported what workers need.  It clones itself for
each, and they are the caller's own children.  :func:`get_context` makes multiprocessing and
concurrent.futures use one.
"""

from __future__ import annotations

from ._errors import ZygoteError
from ._zygote import Zygote

__all__ = ["Zygote", "ZygoteError"]
