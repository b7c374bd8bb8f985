"""Functions for workers of a zygote in tests, and setups of a zygote."""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyforkfd as ff
from pyforkfd import _core

imported_in = os.getpid()
retained: list[Any] = []


def nothing() -> None:
    """Do nothing."""


def report(fd: int, facts: object) -> None:
    os.write(fd, json.dumps(facts).encode())


def facts(fd: int) -> None:
    """Report the worker's state; names are those of tests/helpers/look.c where it has them."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    report(
        fd,
        {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "sid": os.getsid(0),
            "pgid": os.getpgid(0),
            "imported_in": imported_in,
            "fds": {row[0]: [row[6], row[7], row[3]] for row in _core.fd_table(0)},
            "blocked": int(status["SigBlk"], 16),
            "ignored": int(status["SigIgn"], 16),
            "no_new_privs": int(status["NoNewPrivs"]),
            "seccomp": int(status["Seccomp"]),
            "capabilities": int(status["CapBnd"], 16),
            "uid": os.getresuid(),
            "gid": os.getresgid(),
            "groups": os.getgroups(),
            "umask": int(status["Umask"], 8),
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "cwd": os.getcwd(),
            "env": dict(os.environ),
            "cgroup": Path("/proc/self/cgroup").read_text(),
            "argv": sys.argv,
            "threads": threading.active_count(),
            "gc": [gc.isenabled(), gc.get_freeze_count() > 0],
        },
    )


def write(*words: str) -> None:
    print(*words)


def echo(data: bytes) -> None:
    sys.stdout.buffer.write(data)


def copy() -> None:
    sys.stdout.write(sys.stdin.read())


def leave(code: Any) -> None:
    sys.exit(code)


def fail(text: str) -> None:
    raise ValueError(text)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def wait() -> None:
    """Wait for a signal that ends us."""
    while True:
        signal.pause()


def draw(fd: int) -> None:
    drawn: list[object] = [random.random(), os.getpid()]
    if "numpy" in sys.modules:
        drawn.append(float(sys.modules["numpy"].random.random()))
    if "ssl" in sys.modules:
        drawn.append(sys.modules["ssl"].RAND_bytes(8).hex())
    report(fd, drawn)


def whole(fd: int) -> None:
    """Use threads, programs and signals, as any Python process can."""
    got: list[object] = []
    threads = [threading.Thread(target=got.append, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGUSR1, lambda number, frame: got.append("signal"))
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    with ff.spawn(["true"]) as program:
        program.wait()
    got.append(program.returncode)
    if (pid := os.fork()) == 0:
        os._exit(3)
    got.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    report(fd, got[20:])


def at_end(path: str) -> None:
    """Register a function with atexit, and start a thread that outlives the job."""

    def write(text: str) -> None:
        with open(path, "a") as file:
            file.write(text)

    ready = threading.Event()

    def late() -> None:
        ready.wait()
        write("thread ")

    atexit.register(write, "atexit ")
    threading.Thread(target=late).start()
    threading.Timer(0.05, ready.set).start()
    print("buffered", end="")


def fill(queue: Any) -> None:
    queue.put("from a worker")


def faults(fd: int) -> None:
    """Report how many pages were copied or mapped before the worker's first line."""
    os.write(fd, b"%d" % resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def streams(fd: int) -> None:
    """Report Python's view of 0, 1 and 2."""
    seen: list[object] = []
    text = None
    if sys.stdin is not None:
        if sys.stdin.seekable():
            sys.stdin.seek(0)  # a stream whose position is 0 already does not seek
        text = sys.stdin.read()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            seen.append(None)
        else:
            position = stream.tell() if stream.seekable() else "none"
            seen.append([stream.name, position, stream.line_buffering, stream.closed])
    report(fd, [*seen, text])
    print("written", flush=True)


def defaults(fd: int) -> None:
    """Report the state that a rehearsal must not have changed."""
    import multiprocessing

    report(
        fd,
        [
            multiprocessing.get_start_method(allow_none=True),
            multiprocessing.current_process().name,
            hasattr(multiprocessing.current_process(), "_inheriting"),
            sys.path,
        ],
    )


def listeners(fd: int) -> None:
    report(fd, [[x.fd, x.name] for x in ff.listen_fds()])


def break_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    print("lost")


# --- setups of a zygote


def register_atexit() -> None:
    atexit.register(os.write, 2, b"the zygote's atexit\n")


def start_thread() -> None:
    forever = threading.Event()
    threading.Thread(target=forever.wait, name="forgotten pool", daemon=True).start()


def open_files() -> None:
    retained.append(open("/etc/hostname"))
    os.environ["HELD"] = str(retained[0].fileno())


def read_retained(fd: int) -> None:
    report(fd, [retained[0].read(), retained[0].fileno()])


def fail_here() -> None:
    raise RuntimeError("the setup does not want to")


def stop_here() -> None:
    sys.exit("the setup calls exit")


def kill_here() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_birth() -> None:
    os.register_at_fork(before=_killed)


def die_after_birth() -> None:
    os.register_at_fork(after_in_parent=_killed)


def die_as_worker() -> None:
    os.register_at_fork(after_in_child=_killed)


def die_both() -> None:
    os.register_at_fork(after_in_child=_killed, after_in_parent=_killed)


def obey_faults() -> None:
    """Let each worker fail at the stage that a file names."""
    path = Path(os.environ["FAULT"])

    def inject() -> None:
        if stage := path.read_text():
            _core.inject_fault(stage, 71)

    os.register_at_fork(after_in_child=inject)


def stop_at_gate() -> None:
    """Let each worker wait at a FIFO before its options are applied."""
    path = os.environ["GATE"]
    os.register_at_fork(after_in_child=lambda: open(path).close())


def count_hooks() -> None:
    os.register_at_fork(after_in_child=lambda: retained.append("child"))


def note_births() -> None:
    os.register_at_fork(before=lambda: retained.append(time.monotonic_ns()))


def report_hooks(fd: int) -> None:
    report(fd, retained)


def report_module(fd: int, name: str) -> None:
    report(fd, sys.modules[name].__dict__.get("version"))


def call(function: Callable[[], object]) -> None:
    function()
