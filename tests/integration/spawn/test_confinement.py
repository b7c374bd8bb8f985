"""Root directory, namespaces, cgroup, seccomp, and dying with the parent."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import struct
import sys
import threading
from pathlib import Path

import pytest
from children import REPORT, Children, needs_root, read_report
from leaks import gone

import pyforkfd as ff

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
GETPPID = {"x86_64": 110, "aarch64": 173}[platform.machine()]


@needs_root
def test_chroot(children: Children, shared_path: Path) -> None:
    shutil.copy(children.program, shared_path / "look")
    seen = children.look_as(["/look", str(REPORT)], chroot=shared_path)
    assert (seen["cwd"], set(seen["fds"])) == ("/", {"0", "1", "2"})
    (shared_path / "inside").mkdir()
    seen = children.look_as(["/look", str(REPORT)], chroot=shared_path, cwd="/inside")
    assert seen["cwd"] == "/inside"


@needs_root
def test_a_root_that_is_missing(children: Children, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        children.start(["true"], chroot=tmp_path / "no")
    assert str(caught.value) == (
        f"spawn true: change root directory: {tmp_path}/no: No such file or directory"
    )


@needs_root
@pytest.mark.parametrize("kind", KINDS)
def test_one_new_namespace(children: Children, kind: str) -> None:
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in KINDS}
    seen = children.look(namespaces=[kind])["namespaces"]  # type: ignore[list-item]
    # In a pid namespace of its own /proc still is ours, and has no entry for it.
    if kind != "pid":
        assert {name for name in KINDS if seen[name] != ours[name]} == {kind}
    assert {name: os.readlink(f"/proc/self/ns/{name}") for name in KINDS} == ours


@needs_root
def test_first_of_a_pid_namespace(children: Children) -> None:
    seen = children.look(namespaces=["pid"], parent_death_signal=signal.SIGKILL)
    assert (seen["pid"], seen["ppid"], seen["death_signal"]) == (1, 0, signal.SIGKILL)


def test_user_namespace_with_maps(children: Children) -> None:
    uid, gid = os.geteuid(), os.getegid()
    seen = children.look(namespaces=["user"], uid_map=[(7, uid, 1)], gid_map=[(8, gid, 1)])
    assert (seen["uid"], seen["gid"]) == ([7, 7, 7], [8, 8, 8])


def test_namespaces_of_a_user_namespace(children: Children) -> None:
    """Root inside, for a moment: what rootless containers begin with."""
    seen = children.look(
        namespaces=["user", "mnt", "net", "uts"],
        uid_map=[(0, os.geteuid(), 1)],
        gid_map=[(0, os.getegid(), 1)],
    )
    assert seen["uid"] == [0, 0, 0]
    assert seen["namespaces"]["net"] != os.readlink("/proc/self/ns/net")


def test_maps_that_overlap(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], namespaces=["user"], uid_map=[(0, 0, 1), (0, 1, 1)])
    assert (caught.value.stage, caught.value.subject) == ("id_maps", "uid_map: 0 0 1;0 1 1;")


@pytest.mark.parametrize("by_path", [True, False])
def test_cgroup(children: Children, cgroup: Path, by_path: bool) -> None:
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        seen = children.look(cgroup=cgroup if by_path else fd)
    finally:
        os.close(fd)
    assert seen["cgroup"].endswith(cgroup.name)
    assert set(seen["fds"]) == {"0", "1", "2"}


def test_what_is_no_cgroup(children: Children, tmp_path: Path) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], cgroup=tmp_path)
    assert (caught.value.stage, caught.value.errno) == ("cgroup", errno.EINVAL)
    assert caught.value.subject == f"{tmp_path} is not in a cgroup v2 tree"


def refuse_getppid() -> bytes:
    lines = [
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 1, GETPPID),
        (0x06, 0, 0, 0x00050000 | errno.EXFULL),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def test_seccomp(children: Children) -> None:
    seen = children.look(seccomp=refuse_getppid(), no_new_privs=True)
    assert (seen["seccomp"], seen["ppid"]) == (2, -errno.EXFULL)
    assert children.look()["ppid"] == os.getpid()


def test_a_filter_that_is_no_program(children: Children) -> None:
    with pytest.raises(ff.SpawnError) as caught:
        children.start(["true"], seccomp=b"\xff" * 16, no_new_privs=True)
    assert str(caught.value) == (
        "spawn true: install seccomp filter: 2 instructions: Invalid argument"
    )


@pytest.mark.parametrize("scope", ["process", "thread"])
def test_death_signal_is_set(children: Children, scope: str) -> None:
    seen = children.look(
        parent_death_signal=signal.SIGTERM,
        parent_death_scope=scope,  # type: ignore[arg-type]
    )
    assert seen["death_signal"] == signal.SIGTERM


@needs_root
def test_death_signal_survives_the_change_of_user(children: Children) -> None:
    """setresuid clears it, prctl(2): so it is set again."""
    seen = children.look(parent_death_signal=signal.SIGTERM, user="nobody")
    assert seen["death_signal"] == signal.SIGTERM


SPAWNER = """
import os, signal, sys, threading
import pyforkfd as ff
from pyforkfd import _core
_core.force_backend(sys.argv[1])
def start():
    print(ff.spawn(["sleep", "1000"], parent_death_signal=signal.SIGKILL).pid, flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
sys.stdin.read()
os._exit(0)
"""


def thread_names(pid: int) -> set[str]:
    """The first thread is "main", whatever the program is called."""
    names = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        names.add("main" if int(task.name) == pid else name)
    return names


def test_dies_with_the_process_and_not_before(children: Children) -> None:
    with ff.spawn(
        [sys.executable, "-I", "-c", SPAWNER, children.backend], fds={0: ff.PIPE, 1: ff.PIPE}
    ) as spawner:
        assert spawner.stdin is not None and spawner.stdout is not None
        sleeper = int(spawner.stdout.readline())
        # The thread that spawned is gone from the kernel, and the sleeper lives.
        assert gone(lambda: thread_names(spawner.pid) == {"forkfd-spawner", "main"})
        os.kill(sleeper, 0)
        spawner.stdin.close()
        # The sleeper holds the other end too: the end of the file is its death.
        assert spawner.stdout.read() == b""


def test_dies_with_the_thread(children: Children) -> None:
    fds: dict[int, ff.FdSource] = {0: ff.PIPE, REPORT: ff.PIPE_FROM_CHILD}
    args: list[ff.StrPath] = [children.program, str(REPORT), "wait"]
    started: list[ff.Process] = []

    def start() -> None:
        child = children.start(
            args,
            fds=fds,
            parent_death_signal=signal.SIGKILL,
            parent_death_scope="thread",
        )
        read_report(child)
        started.append(child)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as child:
        assert child.wait(timeout=10).signal == signal.SIGKILL
