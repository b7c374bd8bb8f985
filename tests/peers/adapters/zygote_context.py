"""multiprocessing's forkserver is a zygote: here, in the zygote, and so in its workers."""

# mypy: ignore-errors

import multiprocessing.context
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pyforkfd.zygote import Zygote
from pyforkfd.zygote._context import Popen, ZygoteContext

started = 0


class Counted(Zygote):
    """Counts its workers."""

    def spawn(self, *args, **options):
        global started
        started += 1
        return super().spawn(*args, **options)


class Forkserver(ZygoteContext):
    """Under the name that the suites expect."""

    _name = "forkserver"


def install():
    context = Forkserver(Counted(preload=["zygote_context"]))
    context.Process._start_method = "forkserver"
    context.Process.__name__ = "ForkServerProcess"
    multiprocessing.context.ForkServerProcess = context.Process
    multiprocessing.context._concrete_contexts["forkserver"] = context
    Popen.method = "forkserver"


def calls():
    return started


install()
