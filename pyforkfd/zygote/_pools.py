"""Thread pools that libraries start when they are imported: ended before a clone, or named."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from pyforkfd import _core

# Library -> the variable without which it starts threads, read when it is loaded.
_VARIABLES = (
    ("openblas", "OPENBLAS_NUM_THREADS"),
    ("mkl_", "MKL_NUM_THREADS"),
    ("libgomp", "OMP_NUM_THREADS"),
    ("libiomp", "OMP_NUM_THREADS"),
    ("libomp", "OMP_NUM_THREADS"),
    ("blis", "BLIS_NUM_THREADS"),
)


def end_pools() -> None:
    """End the threads of libraries that end them before a fork.

    A clone does not run the handlers of pthread_atfork(3), so a fork runs them here once, whose
    child exits at once.  OpenBLAS, which numpy loads, joins its threads then, and starts others
    when it is used again (blas_server.c).
    """
    if not _core.other_threads():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() in a process with threads
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def remedy() -> str:
    """Return what keeps the loaded libraries from starting threads; empty: none is known."""
    loaded = Path("/proc/self/maps").read_text()
    found = {name for library, name in _VARIABLES if re.search(rf"/[^\n]*{library}", loaded)}
    if not found:
        return ""
    variables = " ".join(f"{name}=1" for name in sorted(found))
    return f"a library may have started them: run the zygote with {variables} in its environment"
