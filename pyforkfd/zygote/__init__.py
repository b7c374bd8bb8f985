"""Python workers with their modules imported, started in a millisecond or two from any parent.

A :class:`Zygote` is a small process that has imported what workers need.  It clones itself for
each worker, and workers are the caller's own children.  :func:`get_context` makes
multiprocessing and concurrent.futures use a zygote.
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
    """Return a multiprocessing context whose processes a zygote starts.

    The context has the interface of ``multiprocessing.get_context()``, and fits wherever a
    context is an argument: ``ProcessPoolExecutor(mp_context=get_context())``.  Arguments are
    pickled, as for spawn and forkserver; the program's main module needs the guard ``if
    __name__ == "__main__"`` as there.  The processes are our own children.  As always in
    multiprocessing, only daemonic ones end with us.

    Args:
        zygote: the zygote; None: the one that the whole process shares, with the main module
            preloaded.
    """
    from ._context import ZygoteContext, default_zygote  # multiprocessing, for those who use it

    return ZygoteContext(zygote or default_zygote())
