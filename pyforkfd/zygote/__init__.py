"""A warmed Python worker in a millisecond or two, from any parent.

A :class:`Zygote` is a small process that has imported what workers need.  It clones itself for
each, and they are the caller's own children.  :func:`get_context` makes multiprocessing and
concurrent.futures use one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyforkfd._options import WorkerOptions

from ._errors import ZygoteError
from ._zygote import Zygote

if TYPE_CHECKING:
    from ._context import ZygoteContext

__all__ = ["WorkerOptions", "Zygote", "ZygoteError", "get_context"]


def get_context(zygote: Zygote | None = None) -> ZygoteContext:
    """A multiprocessing context whose processes a zygote makes.

    It has the interface of ``multiprocessing.get_context()``, and goes wherever a context is
    taken: ``ProcessPoolExecutor(mp_context=get_context())``.  Arguments are pickled, as for
    spawn and forkserver; the program's main module should be guarded by ``if __name__ ==
    "__main__"`` as there.  Its processes are our own children, and do not end with us unless
    they are daemons, as multiprocessing has it.

    Args:
        zygote: None is the one that the whole process shares, with the main module preloaded.
    """
    from ._context import ZygoteContext, default_zygote  # multiprocessing, for those who use it

    return ZygoteContext(zygote or default_zygote())
