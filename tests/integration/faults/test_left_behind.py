"""Nothing of ours stays when its parent is killed, whatever it waits for at that moment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
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

# Two components, a program and a function, and a sender that reaches nobody.
SERVICE = f"""
[log.loki]
url = "http://127.0.0.1:{{port}}"
batch_seconds = 0.1
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
CRASHING = f"""
[components.program]
command = ["/bin/false"]
readiness = "started"
cgroup = "off"
on_crash = [{SLEEP}]
"""


def always() -> bool:
    return True


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


def kill_parent(
    program: str,
    processes: int,
    directory: Path,
    *front: str,
    service: str = "",
    keeper: bool = False,
    waits: Callable[[], bool] = always,
    after: Callable[[], object] = always,
) -> None:
    """Start a parent, wait for its processes, kill it, and demand that none is left.

    Args:
        program: of the parent, in Python.
        processes: that there are at least while it hangs, with those of ``front``.
        directory: for its files.
        front: words before the interpreter, such as strace and its options.
        service: the components of service.toml.
        keeper: whether the parent is a keeper, whose child the supervisor is.
        waits: whether the moment has come, besides.
        after: called once the parent is killed.
    """
    mark = str(uuid.uuid4())
    os.mkfifo(directory / "fifo")
    (directory / "never_imported.py").write_text("import time\ntime.sleep(1000)\n")
    head = f'name = "left"\nkeeper = {str(keeper).lower()}\n'
    control = f'{head}[control]\npath = "{directory}/control"\n'
    (directory / "service.toml").write_text(control + service)
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
        assert until(lambda: len(marked(mark)) >= processes and waits()), (
            f"there are {marked(mark)}"
        )
        time.sleep(0.3)  # it waits by now
        assert parent.poll() is None
        assert not keeper or marked(mark)[parent.pid] == "forkfd-keeper"
        parent.kill()
        parent.wait()
        after()
        assert until(lambda: not marked(mark)), f"left behind: {marked(mark)}"
    finally:
        parent.kill()
        parent.wait()
        for pid in marked(mark):
            os.kill(pid, 9)


@pytest.mark.parametrize("parent", PARENTS)
def test_nothing_stays(parent: str, tmp_path: Path) -> None:
    program, processes = PARENTS[parent]
    kill_parent(program, processes, tmp_path, service=SERVICE.format(port=free_port()))


# Name -> the system call that strace holds for seconds, and the options of the spawn.
HELD = {
    "id maps that its parent's thread writes": ("write", f"namespaces=['user'], {MAPS}"),
    "a directory": ("chdir", "cwd='/'"),
    "a directory, as another user": ("chdir", "cwd='/', user=65534, group=65534, extra_groups=[]"),
    "a new root": ("chroot", "chroot='/'"),
}


@pytest.mark.parametrize("moment", HELD)
def test_a_child_whose_system_call_is_slow(moment: str, tmp_path: Path) -> None:
    strace = tool("strace", "strace", NATIVE_TOOLS)
    if os.geteuid() != 0 and moment != "a directory":
        pytest.skip("chroot, another user and maps want root")
    call, options = HELD[moment]
    rule = f"inject={call}:delay_enter=5000000"
    front = (strace, "-D", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", rule)
    kill_parent(f"{SETUP}ff.spawn({SLEEP}, {options})", 3, tmp_path, *front)


def test_a_child_in_a_frozen_cgroup(cgroup: Path, tmp_path: Path) -> None:
    """It is frozen before its first instruction: once thawed it must not become the program."""
    freeze = cgroup / "cgroup.freeze"
    if not freeze.exists():
        pytest.skip("no cgroup.freeze, new in Linux 5.2")
    freeze.write_text("1")

    def thaw() -> None:
        freeze.write_text("0")

    try:
        program = f"{SETUP}ff.spawn({SLEEP}, cgroup={str(cgroup)!r})"
        kill_parent(program, 2, tmp_path, after=thaw)
    finally:
        thaw()


def test_a_keeper(tmp_path: Path) -> None:
    """Its supervisor stops in order, with the workers, the zygote and the sender."""
    service = SERVICE.format(port=free_port())
    kill_parent(SERVE, 6, tmp_path, service=service, keeper=True)


def test_a_keeper_whose_supervisor_has_not_begun(tmp_path: Path) -> None:
    """The supervisor blocks SIGTERM until it reads it: it must come to that."""
    kill_parent(SERVE, 2, tmp_path, service=SERVICE.format(port=free_port()), keeper=True)


def test_a_hook_that_hangs(tmp_path: Path) -> None:
    """With the supervisor and a worker there is at least one hook among three processes."""
    kill_parent(SERVE, 3, tmp_path, service=CRASHING)


def test_a_sender_whose_loki_never_finishes_its_answer(tmp_path: Path) -> None:
    """Each read of the sender succeeds in time, so that no time-out ends it."""
    answering = threading.Event()

    def answer(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    connection.sendall(b"a")
                    answering.set()
                    time.sleep(0.2)
            except OSError:  # the sender has ended
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener], daemon=True)
        thread.start()
        service = SERVICE.format(port=listener.getsockname()[1])
        kill_parent(SERVE, 5, tmp_path, service=service, waits=answering.is_set)
        thread.join(10)
        assert not thread.is_alive()
