"""ff.fork(): os.fork's semantics, and what it adds."""

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from forks import beside_threads, end, our_fork

import pyforkfd as ff


def forked() -> ff.Process | None:
    with beside_threads():
        return ff.fork()


def test_parent_and_child() -> None:
    child = forked()
    if child is None:
        os._exit(23)
    with child:
        assert (child.backend, child.args, child.pipes) == ("fork", (), {})
        assert child.pid > 0 and ff.cloexec(child.pidfd)
        assert child.wait(timeout=60).code == 23
        assert repr(child) == f"<Process {child.pid}: exit code 23>"


def test_signals_go_through_the_pidfd() -> None:
    child = forked()
    if child is None:
        signal.pause()
        os._exit(1)
    child.kill()
    assert child.wait(timeout=60).signal == signal.SIGKILL
    child.close()


def test_the_child_is_a_python_of_its_own() -> None:
    ident, native = threading.get_ident(), threading.get_native_id()

    def work() -> None:
        assert threading.main_thread() is threading.current_thread()
        assert threading.get_ident() == ident and threading.get_native_id() != native
        assert threading.get_native_id() == os.getpid()
        ran: list[int] = []
        thread = threading.Thread(target=lambda: ran.append(1))
        thread.start()
        thread.join()
        assert ran == [1]
        with ff.spawn(["true"]) as grandchild:
            assert grandchild.wait().success
        assert our_fork(lambda: 7) == 7

    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert our_fork(work) == 0


def test_forked_by_another_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(our_fork(lambda: 5)))
    thread.start()
    thread.join()
    assert codes == [5]


def test_audit_event() -> None:
    script = (
        "import os, sys, pyforkfd as ff\n"
        "seen = []\n"
        "def hook(event, args):\n"
        "    if event == 'os.fork':\n"
        "        seen.append(args)\n"
        "        if len(seen) > 1: raise PermissionError('enough')\n"
        "sys.addaudithook(hook)\n"
        "child = ff.fork()\n"
        "if child is None: os._exit(0)\n"
        "child.wait()\n"
        "try: ff.fork()\n"
        "except PermissionError: print(seen)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"[(), ()]\n"


def test_a_before_handler_refuses() -> None:
    said: list[str] = []

    def say(word: str) -> None:
        said.append(word)

    def refuse() -> None:
        raise KeyboardInterrupt("not now")

    with (
        ff.atfork.register(before=lambda: say("never"), after_in_parent=lambda: say("never")),
        ff.atfork.register(
            before=refuse, after_in_parent=lambda: say("refuser"), name="busy"
        ) as busy,
        ff.atfork.register(
            after_in_parent=lambda: say("reached"), after_in_child=lambda: say("child")
        ),
        ff.atfork.register(before=lambda: say("before"), after_in_parent=lambda: say("after")),
    ):
        with pytest.raises(KeyboardInterrupt, match="not now"):
            forked()
        assert said == ["before", "reached", "after"]
        assert ff.atfork.stats()[1].before.failures == 1
        busy.unregister()
        said.clear()
        assert our_fork(lambda: said != ["before", "never", "child"]) == 0
    assert said == ["before", "never", "never", "reached", "after"]


def test_a_refusal_concerns_one_fork_alone() -> None:
    """A handler that forks, and one whose os.fork nobody can refuse."""
    caught: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: caught.append(args.exc_value)

    def refuse() -> None:
        raise ValueError("no")

    try:
        with ff.atfork.register(before=refuse):
            with pytest.raises(ValueError, match="no"):
                forked()
            with beside_threads():
                pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            assert [str(c) for c in caught] == ["no"]
            with pytest.raises(ValueError, match="no"):
                forked()
    finally:
        sys.unraisablehook = hook
    assert our_fork(lambda: 0) == 0


def test_a_fork_that_fails() -> None:
    """As after os.fork: after_in_parent runs, nothing is held, nothing is left."""
    script = (
        "import os, resource, pyforkfd as ff\n"
        "said = []\n"
        "b, p = lambda: said.append('b'), lambda: said.append('p')\n"
        "ff.atfork.register(before=b, after_in_parent=p)\n"
        "os.setuid(65534)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try: ff.fork()\n"
        "except BlockingIOError as error: print(error.errno, said)\n"
        "with ff.inheriting(1): pass\n"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a user who may have no process")
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{errno.EAGAIN} ['b', 'p']\n", done.stderr


def test_no_descriptor_is_left_for_the_pidfd() -> None:
    def work() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        last = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
        try:
            while True:
                os.dup(0)
        except OSError:
            pass
        try:
            if forked() is None:
                signal.pause()
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert str(error).endswith("fork: open pidfd of the child: Too many open files")
            children = Path(f"/proc/self/task/{os.getpid()}/children")
            assert not children.exists() or children.read_text() == ""
        else:
            raise AssertionError("a descriptor was left")

    assert our_fork(work) == 0


def test_somebody_else_reaps_at_once() -> None:
    """SIGCHLD is ignored: the child may be gone before it has a pidfd."""

    def work() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(50):
            child = forked()
            if child is None:
                os._exit(0)
            status = child.wait(timeout=60)
            assert status.lost or status.code == 0
            child.close()

    assert our_fork(work) == 0


def test_the_parents_children_are_not_the_childs() -> None:
    with ff.spawn(["sleep", "60"]) as child:

        def work() -> None:
            with pytest.raises(ChildProcessError, match="is a child of process"):
                child.poll()
            with pytest.raises(ChildProcessError):
                child.kill()
            child.close()

        assert our_fork(work) == 0
        assert child.poll() is None
        child.kill()


def waitable(child: ff.Process) -> bool:
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def test_a_copy_is_closed_though_a_thread_was_taking_the_status() -> None:
    """The lock that it holds, here for as long as nobody reads its line, stays held in the copy."""
    reader, writer = os.pipe()
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))  # full
    ended = ff.spawn(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    ff.debug(f"exec=1,fd={writer}")
    thread = threading.Thread(target=ended.poll)
    try:
        thread.start()
        while waitable(ended):
            os.sched_yield()
        child = forked()
        if child is None:
            signal.alarm(30)
            end(ended.close)
        assert child is not None
        os.read(reader, 1 << 20)
        with child:
            assert child.wait(timeout=60).code == 0
        assert ended.status is not None and ended.status.success
    finally:
        ff.debug("")
        thread.join()
        ended.close()
        os.close(reader)
        os.close(writer)


def test_no_python_of_ours_runs() -> None:
    """Neither around the fork nor for what the child drops: each page it touches is a fault."""
    script = (
        "import os, sys, pyforkfd as ff\n"
        "ran = []\n"
        "def look(frame, event, arg):\n"
        "    if event == 'call' and 'pyforkfd' in frame.f_code.co_filename:\n"
        "        ran.append(frame.f_code.co_qualname)\n"
        "for _ in range(2):\n"
        "    sys.setprofile(look); child = ff.fork(); sys.setprofile(None)\n"
        "    if child is None: os._exit(len(ran))\n"
        "    assert child.wait().code == 0\n"
        "    child.close()\n"
        "    sys.setprofile(look); del child; sys.setprofile(None)\n"
        "    assert ran == [], ran\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


def test_its_signature() -> None:
    assert str(inspect.signature(ff.fork)) == "(*, cgroup=None)"
    with pytest.raises(TypeError, match="fork: cgroup: keyword-only"):
        ff.fork("/")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="fork: unexpected argument 'group'"):
        ff.fork(group="/")  # type: ignore[call-arg]
    assert pickle.loads(pickle.dumps(ff.fork)) is ff.fork


def test_a_forgotten_child_is_warned_of_and_reaped() -> None:
    reader, writer = os.pipe()
    child = forked()
    if child is None:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    pid = child.pid
    with pytest.warns(ResourceWarning, match=rf"child {pid} \(forked\) still runs"):
        del child
    # Nor does a child of ours take it for its own.
    assert our_fork(lambda: len(ff._process._forgotten)) == 0
    os.close(reader)
    os.close(writer)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ff.spawn(["true"]).wait()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_other_threads_are_named() -> None:
    """In a process without pytest's watchdog."""
    script = (
        "import ctypes, os, threading, warnings, pyforkfd as ff\n"
        "warnings.simplefilter('error')\n"
        "def fork():\n"
        "    if (child := ff.fork()) is None: os._exit(0)\n"
        "    return child.wait().code\n"
        "assert fork() == 0\n"
        "go = threading.Event()\n"
        "thread = threading.Thread(target=go.wait, name='collector'); thread.start()\n"
        "ff.spawn(['true'], parent_death_signal=9).wait()\n"
        "try: fork()\n"
        "except ff.ForkWarning as warning: print(warning, warning.threads)\n"
        "go.set(); thread.join()\n"
        "warnings.simplefilter('always')\n"
        "with warnings.catch_warnings(record=True) as caught: assert fork() == 0\n"
        "print([(w.filename, w.lineno, str(w.message)) for w in caught])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    names = "'collector', 'forkfd-spawner' (native)"
    beside = "they are not in the child, but the locks they hold are; spawn() is safe"
    raised, recorded = done.stdout.splitlines()
    assert raised == (
        f"fork beside 2 other threads ({names}): {beside} "
        "(\"'collector'\", \"'forkfd-spawner' (native)\")"
    )
    # At the line of the caller.
    assert recorded == (
        f"[('<string>', 4, \"fork beside 1 other thread ('forkfd-spawner' (native)): {beside}\")]"
    )


def test_a_warning_that_is_an_error_forks_nothing() -> None:
    ran: list[int] = []
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        with ff.atfork.register(before=lambda: ran.append(1)), warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ff.ForkWarning):
                ff.fork()
    finally:
        go.set()
        thread.join()
    assert ran == []


def where(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.parametrize("how", ["path", "bytes", "descriptor"])
def test_the_child_is_in_its_cgroup_when_it_runs(cgroup: Path, how: str) -> None:
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with beside_threads():
            given = {"path": cgroup, "bytes": os.fsencode(cgroup), "descriptor": fd}[how]
            child = ff.fork(cgroup=given)  # type: ignore[arg-type]
        if child is None:
            end(lambda: not where(os.getpid()).rstrip().endswith(cgroup.name))
        assert child is not None
        with child:
            assert child.wait().code == 0
    finally:
        os.close(fd)


def test_at_fork_handlers_run_in_the_cgroup(cgroup: Path) -> None:
    seen: list[str] = []
    with (
        ff.atfork.register(after_in_child=lambda: seen.append(where(os.getpid()))),
        beside_threads(),
    ):
        child = ff.fork(cgroup=cgroup)
        if child is None:
            end(lambda: not seen[0].rstrip().endswith(cgroup.name))
        assert child is not None
        with child:
            assert child.wait().code == 0


def test_a_cgroup_that_cannot_be_entered(cgroup: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with ff.atfork.register(after_in_parent=lambda: said.append("after")), beside_threads():
        for wrong, kind in ((tmp_path, FileNotFoundError), (tmp_path / "none", FileNotFoundError)):
            with pytest.raises(kind):
                ff.fork(cgroup=wrong)
        with pytest.raises(ValueError, match="cgroup: the path is empty"):
            ff.fork(cgroup="")
        assert said == []
        (cgroup / "cgroup.type").write_text("threaded")
        # No domain: cgroup.procs of a threaded cgroup takes nobody, cgroups(7).
        inner = cgroup / "inner"
        inner.mkdir()
        try:
            with pytest.raises(
                OSError, match=f"fork: enter cgroup '{inner}': Operation not supported"
            ):
                ff.fork(cgroup=inner)
        finally:
            inner.rmdir()
        assert said == ["after"]
