"""clone(): a child with flags that fork does not take is as right as a forked one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from children import needs_root

import pyforkfd as ff
from pyforkfd import CloneFlag

# In an interpreter of its own: pytest's has threads.
PRELUDE = """
import os, signal, subprocess, sys, threading
from pathlib import Path
import pyforkfd as ff
from pyforkfd import CloneFlag

def child_of(body, flags=0, **options):
    sys.stdout.flush()  # or the child prints it too
    child = ff.clone(flags, **options)
    if child is None:
        try:
            code = body()
            sys.stdout.flush()
            os._exit(code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(99)
    return child
"""


def run(body: str) -> list[str]:
    """What the script prints, by line; it must succeed and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", PRELUDE + body],
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_native_actions_run_as_for_a_fork() -> None:
    said = run("""
fd = os.eventfd(0)
with ff.atfork.in_child(close=[fd]):
    closed = child_of(lambda: os.path.exists(f"/proc/self/fd/{fd}")).wait().code
kept = child_of(lambda: os.path.exists(f"/proc/self/fd/{fd}")).wait().code
print(closed, kept, os.fstat(fd) is not None)
with ff.atfork.in_child(close=[fd]):
    try:
        ff.clone(CloneFlag.NEWPID, cgroup="/")
    except OSError:
        os.fstat(fd)
        print("a clone that failed leaves it")
""")
    assert said == ["0 1 True", "a clone that failed leaves it"]


def test_the_child_is_a_whole_python() -> None:
    said = run("""
parent = os.getpid()
def body():
    assert os.getpid() == threading.get_native_id() == int(os.readlink("/proc/self"))
    assert os.getppid() == parent
    assert threading.current_thread() is threading.main_thread()
    got = []
    signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # by the id that libc keeps
    signal.raise_signal(signal.SIGUSR1)
    assert len(got) == 2, got
    threads = [threading.Thread(target=got.append, args=(n,)) for n in range(50)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 52
    assert subprocess.run(["echo", "a program"], stdout=subprocess.PIPE).stdout == b"a program\\n"
    blocks = [bytearray(1 << n) for n in range(24)]
    with ff.spawn(["true"]) as program: pass
    assert program.status.success
    pid = os.fork()
    if pid == 0: os._exit(4)
    assert os.waitpid(pid, 0)[1] == 4 << 8
    return child_of(lambda: 6).wait().code
child = child_of(body)
print(child.wait().code, child.wait().rusage.ru_utime > 0, child.backend)
""")
    assert said == ["6 True fork-like"]


def test_a_sibling_is_waited_for_by_our_parent() -> None:
    said = run("""
reader, writer = os.pipe()
def body():
    sibling = ff.clone(CloneFlag.PARENT)
    if sibling is None:
        os._exit(17)
    assert type(sibling) is ff.Sibling and os.fstat(sibling.pidfd.fileno())
    try:
        os.waitpid(sibling.pid, 0)
    except ChildProcessError:
        os.write(writer, b"%d" % sibling.pid)
    sibling.pidfd.close()
assert child_of(body).wait().success
print(os.waitstatus_to_exitcode(os.waitpid(int(os.read(reader, 20)), 0)[1]))
""")
    assert said == ["17"]


@pytest.mark.parametrize("signal", ["0", "signal.SIGUSR1"])
def test_any_exit_signal(signal: str) -> None:
    said = run(f"""
got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
signal.signal(signal.SIGCHLD, lambda number, frame: got.append(number))
print(child_of(lambda: 3, exit_signal={signal}).wait().code, got == [s for s in [{signal}] if s])
""")
    assert said == ["3 True"]


def test_threads_are_named() -> None:
    said = run("""
held = threading.Lock()
held.acquire()
thread = threading.Thread(target=held.acquire, name="the pool")
thread.start()
hooks = []
os.register_at_fork(before=lambda: hooks.append("before"),
                    after_in_parent=lambda: hooks.append("parent"))
try:
    ff.clone()
except ff.ThreadsError as error:
    assert error.threads == {thread.native_id: "the pool"}, error.threads
    print(str(error).replace(str(thread.native_id), "N"))
held.release()
thread.join()
print(child_of(lambda: 2).wait().code, hooks)
""")
    assert said == [
        "the process has other threads: the pool (N)",
        "2 ['before', 'parent', 'before', 'parent']",
    ]


def test_a_native_thread_is_named() -> None:
    said = run("""
ff.spawn(["true"], parent_death_signal=9).wait()  # leaves our own long-lived thread
try:
    ff.clone()
except ff.ThreadsError as error:
    print(*error.threads.values())
""")
    assert said == ["forkfd-spawner"]


def test_hooks_run() -> None:
    said = run("""
os.register_at_fork(before=lambda: os.write(1, b"before\\n"),
                    after_in_parent=lambda: os.write(1, b"parent\\n"),
                    after_in_child=lambda: os.write(1, b"child\\n"))
assert child_of(lambda: 0).wait().success
""")
    assert sorted(said) == ["before", "child", "parent"] and said[0] == "before"


def test_nothing_is_left_open() -> None:
    said = run("""
before = os.listdir("/proc/self/fd")
for _ in range(20):
    with child_of(lambda: 0): pass
print(os.listdir("/proc/self/fd") == before)
""")
    assert said == ["True"]


@needs_root
def test_namespaces() -> None:
    said = run("""
def body():
    assert os.getpid() == 1
    import socket
    socket.sethostname("inside")
    assert child_of(lambda: os.getpid()).wait().code == 2
    try:
        ff.clone(CloneFlag.PARENT)
    except OSError as error:
        print(error.errno == 95, error, flush=True)
    t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
import socket
name = socket.gethostname()
flags = CloneFlag.NEWPID | CloneFlag.NEWUTS | CloneFlag.NEWNET
assert child_of(body, flags).wait().success
assert socket.gethostname() == name
""")
    assert said[0].endswith(
        "pid 1 of a pid namespace may have no siblings: Operation not supported"
    )
    assert said[0].startswith("True") and said[1] == "thread"


def test_handlers_are_cleared() -> None:
    said = run("""
def body():
    status = Path("/proc/self/status").read_text()
    print(*[line.split()[1].strip("0") or "none" for line in status.splitlines()
            if line.startswith("SigCgt")])
assert child_of(body, CloneFlag.CLEAR_SIGHAND).wait().success
""")
    assert said == ["none"]


@needs_root
def test_a_cgroup(cgroup: Path) -> None:
    body = f"""
def body():
    print(Path("/proc/self/cgroup").read_text().strip().endswith({cgroup.name!r}))
assert child_of(body, cgroup={str(cgroup)!r}).wait().success
fd = os.open({str(cgroup)!r}, os.O_RDONLY)
assert child_of(body, cgroup=fd).wait().success
"""
    assert run(body) == ["True", "True"]
    assert run(WITHOUT_CLONE3 + body) == ["True", "True"]


# A filter that answers ENOSYS to clone3(2).
WITHOUT_CLONE3 = """
import ctypes, struct
def insn(code, jt, jf, k): return struct.pack("=HBBI", code, jt, jf, k)
prog = ctypes.create_string_buffer(
    insn(0x20, 0, 0, 0) + insn(0x15, 0, 1, 435) + insn(0x06, 0, 0, 0x50026) +
    insn(0x06, 0, 0, 0x7FFF0000))
class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Fprog(4, ctypes.addressof(prog))), 0, 0) == 0
"""


def test_without_clone3() -> None:
    said = run(
        WITHOUT_CLONE3
        + """
print(child_of(lambda: 8).wait().code)
try:
    ff.clone(CloneFlag.CLEAR_SIGHAND)
except OSError as error:
    print(error.errno, error)
"""
    )
    assert said[0] == "8"
    assert "needs clone3: Function not implemented" in said[1]


def test_flags_that_make_no_process() -> None:
    with pytest.raises(ValueError, match="flags: 0x100 do not make a process"):
        ff.clone(0x100)  # CLONE_VM
    with pytest.raises(ValueError, match="65 is not a signal"):
        ff.clone(exit_signal=65)
    with pytest.raises(FileNotFoundError):
        ff.clone(CloneFlag.NEWUTS, cgroup="/nowhere")
