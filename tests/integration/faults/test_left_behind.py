"""Nothing of ours stays when its parent is killed, whatever it waits for at that moment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from services import free_port
from tools import NATIVE_TOOLS, tool

MARK = "PYFORKFD_TEST_MARK"
SETUP = "import os, sys, time\nimport pyforkfd as ff\nfrom pyforkfd.zygote import Zygote\n"
MAPS = "uid_map=[(0, os.getuid(), 1)], gid_map=[(0, os.getgid(), 1)]"
SLEEP = '["/bin/sleep", "1000"]'
SERVE = (
    "import runpy, sys\nsys.argv = ['pyforkfd', 'serve', 'service.toml']\n"
    "runpy.run_module('pyforkfd', run_name='__main__')\n"
)

# Name -> the parent's program, and the number of processes that there are while it hangs.
PARENTS: dict[str, tuple[str, int]] = {
    "a FIFO of a map": (f"{SETUP}ff.spawn({SLEEP}, fds={{0: ff.Open('fifo')}})", 2),
    "a FIFO, and a signal": (
        f"{SETUP}ff.spawn({SLEEP}, fds={{0: ff.Open('fifo')}}, parent_death_signal=15)",
        2,
    ),
    "a FIFO of posix_spawn": (
        (
            "import os\nfrom pyforkfd.subprocess import posix_spawn\n"
            f"posix_spawn('/bin/sleep', {SLEEP}, {{}},"
            " file_actions=[(os.POSIX_SPAWN_OPEN, 0, 'fifo', os.O_RDONLY, 0)])"
        ),
        2,
    ),
    "a FIFO in namespaces": (
        f"{SETUP}ff.spawn({SLEEP}, fds={{0: ff.Open('fifo')}}, namespaces=['user', 'pid'], {MAPS})",
        2,
    ),
    "a FIFO in a thread": (
        (
            f"{SETUP}import threading\n"
            f"def start(): ff.spawn({SLEEP}, fds={{0: ff.Open('fifo')}})\n"
            "threading.Thread(target=start).start()\ntime.sleep(1000)"
        ),
        2,
    ),
    "a FIFO of a zygote's worker": (
        f"{SETUP}Zygote().spawn('time:sleep', args=(1000,), fds={{3: ff.Open('fifo')}})",
        3,
    ),
    "the imports of a zygote": (f"{SETUP}Zygote(preload=['never_imported']).start()", 2),
    "idle workers of a zygote": (
        (
            f"{SETUP}zygote = Zygote(warm=2)\nzygote.start()\n"
            "zygote.spawn('time:sleep', args=(0,)).wait()\ntime.sleep(1000)"
        ),
        4,
    ),
    "a supervisor, its worker, zygote and sender for Loki": (SERVE, 5),
}


def marked(mark: str) -> dict[int, str]:
    """Return the processes of a test that live, with their names."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() not in Path(f"/proc/{entry}/environ").read_bytes():
                continue
            stat = Path(f"/proc/{entry}/stat").read_text()
        except (OSError, ValueError):
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            found[int(entry)] = stat.split("(", 1)[1].rpartition(")")[0]
    return found


def until(condition: Callable[[], bool], patience: float = 20.0) -> bool:
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def kill_parent(program: str, processes: int, directory: Path, *front: str) -> None:
    """Start a parent, wait until it has so many processes with it, kill it, and look around."""
    mark = str(uuid.uuid4())
    os.mkfifo(directory / "fifo")
    (directory / "never_imported.py").write_text("import time\ntime.sleep(1000)\n")
    (directory / "service.toml").write_text(
        f"""
name = "left"
[control]
path = "{directory}/control"
[log.loki]
url = "http://127.0.0.1:{free_port()}"
[components.program]
command = {SLEEP}
readiness = "started"
cgroup = "off"
[components.function]
function = "time:sleep"
args = [1000]
readiness = "started"
cgroup = "off"
"""
    )
    env = {**os.environ, MARK: mark, "PYTHONPATH": str(directory)}
    parent = subprocess.Popen(
        [*front, sys.executable, "-c", program],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert until(lambda: len(marked(mark)) >= processes), f"there are {marked(mark)}"
        time.sleep(0.3)  # it waits by now
        assert parent.poll() is None
        parent.kill()
        parent.wait()
        assert until(lambda: not marked(mark)), f"left behind: {marked(mark)}"
    finally:
        parent.kill()
        parent.wait()
        for pid in marked(mark):
            os.kill(pid, 9)


@pytest.mark.parametrize("parent", PARENTS)
def test_nothing_stays(parent: str, tmp_path: Path) -> None:
    program, processes = PARENTS[parent]
    kill_parent(program, processes, tmp_path)


def test_a_child_whose_id_maps_are_never_written(tmp_path: Path) -> None:
    """Its parent's thread that writes them is held in write(2), and killed there."""
    strace = tool("strace", "strace", NATIVE_TOOLS)
    rule = "inject=write:delay_enter=60000000"
    front = (strace, "-D", "-f", "-o", "/dev/null", "-e", "trace=write", "-e", rule)
    kill_parent(f"{SETUP}ff.spawn({SLEEP}, namespaces=['user'], {MAPS})", 2, tmp_path, *front)
