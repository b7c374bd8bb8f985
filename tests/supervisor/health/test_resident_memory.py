"""The memory of a process, read from /proc."""

from __future__ import annotations

from cgroups import AS_NOBODY, answer, line, python
from children import needs_root

import pyforkfd as ff
from pyforkfd.supervisor.health._resident_memory import resident_memory

MIB = 1 << 20
HOLDER = f"held = bytearray(b'x') * {64 * MIB}; print('holds', flush=True); input()"
WITH_CHILD = f"""
import os
held = bytearray(b"x") * {64 * MIB}
if (child := os.fork()) == 0: __import__("signal").pause()
print(child, flush=True)
input()
os.kill(child, 9)
os.waitpid(child, 0)
"""
PIPES: dict[int, ff.FdSource] = {0: ff.PIPE, 1: ff.PIPE}


def finish(worker: ff.Process) -> None:
    assert worker.stdin is not None
    worker.stdin.write(b"\n")
    worker.stdin.flush()
    assert worker.wait(timeout=60).success


def test_memory_of_a_process_alone() -> None:
    with python(HOLDER, fds=PIPES) as worker:
        line(worker)
        used = resident_memory(worker.pid)
        assert used is not None and 64 * MIB < used < 96 * MIB
        finish(worker)


def test_shared_memory_is_counted_in_part() -> None:
    """Count it as for workers of a zygote, which share its imports."""
    with python(WITH_CHILD, fds=PIPES) as parent:
        child = int(line(parent))
        exact = resident_memory(child)
        assert exact is not None and 30 * MIB < exact < 48 * MIB
        # Not compared with an earlier resident set: the child is still starting.
        cheap = resident_memory(child, exact_above=96 * MIB)
        assert cheap is not None and 64 * MIB < cheap < 96 * MIB
        finish(parent)


def test_a_process_that_has_ended() -> None:
    with ff.spawn(["true"]) as child:
        child.wait()
    assert resident_memory(child.pid) is None


@needs_root
def test_a_process_of_another_user() -> None:
    """Read its resident set: its maps are closed to a supervisor without privileges."""
    with python(HOLDER, fds=PIPES) as worker:
        line(worker)
        used = answer(
            "import json, sys\n"
            "from pyforkfd.supervisor.health._resident_memory import resident_memory\n"
            "print(json.dumps(resident_memory(int(sys.argv[1]))))",
            str(worker.pid),
            **AS_NOBODY,
        )
        assert used > 64 * MIB
        finish(worker)
