"""What every wheel is tried with: a child is started and its end is seen.  No pytest."""

import errno
import os
import signal
import sys
from importlib.resources import files

import pyforkfd as ff

status = ff.spawn(["/bin/true"]).wait(timeout=60)
assert status.code == 0, status
assert ff.spawn(["false"]).wait(timeout=60).code == 1

with ff.spawn(["cat"], fds={0: ff.PIPE, 1: ff.PIPE}) as child:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"hello")
    child.stdin.close()
    assert child.stdout.read() == b"hello"

with ff.spawn(["sleep", "60"]) as child:
    child.terminate()
    assert child.wait(timeout=60).signal == signal.SIGTERM

try:
    ff.spawn(["/nonexistent"])
except FileNotFoundError as error:
    assert isinstance(error, ff.SpawnError)
    assert error.stage == "exec"
    assert error.errno == errno.ENOENT
else:
    raise AssertionError("a program that does not exist was started")

watched = [sys.executable, "-m", "pyforkfd", "run", "--close-others", "--", "sh", "-c", "exit 3"]
assert ff.spawn(watched, cwd="/").wait(timeout=60).code == 3

keeper = files("pyforkfd.supervisor.succession") / "forkfd-keeper"
kept = ff.spawn([str(keeper), "--", "sh", "-c", 'test -n "$FORKFD_HANDOVER" && exit 4'])
assert kept.wait(timeout=60).code == 4

print(f"pyforkfd {ff.__version__} on Linux {os.uname().release}: {child.backend}")
