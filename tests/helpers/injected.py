"""A process that spawns while strace lets its system calls fail: the victim, and who holds it.

Run as a program it is the victim: it obeys one line after another on its standard input.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyforkfd as ff

UID, GID = os.geteuid(), os.getegid()
CGROUP = "cgroup"  # the shape that wants a cgroup, which only the test can make
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "descriptors": {"fds": {3: ff.DEVNULL, 4: ff.PIPE_TO_CHILD, 9: 0, 11: ff.Open("/dev/null")}},
    "settings": {
        "new_session": True,
        "umask": 0o22,
        "nice": 3,
        "cwd": "/",
        "rlimits": {4: (0, 0)},
        "cpu_affinity": [0],
        "signal_mask": [signal.SIGUSR2],
        "parent_death_signal": signal.SIGTERM,
        "parent_death_scope": "thread",
    },
    "credentials": {
        "user": UID,
        "group": GID,
        "extra_groups": [],
        "capabilities": ff.Capabilities(permitted=[], bounding=[]),
        "no_new_privs": True,
    },
    "namespaces": {
        "namespaces": ["user", "uts"],
        "uid_map": [(0, UID, 1)],
        "gid_map": [(0, GID, 1)],
    },
    CGROUP: {},
}
ROUNDS = 6
ATTACH, DETACH = 1, 2  # phases: strace may come; it may go


def _start(command: ff.Command) -> ff.Process | dict[str, Any]:
    try:
        return command.spawn()
    except OSError as error:
        stage = getattr(error, "stage", None)
        return {"error": error.errno, "stage": stage, "text": str(error)}


def _end(child: ff.Process | dict[str, Any]) -> dict[str, Any]:
    if isinstance(child, dict):
        return child
    if child.stdin is not None:
        child.stdin.close()
    with child:
        return {"error": 0, "backend": child.backend, "status": str(child.wait(timeout=30))}


def main() -> None:
    """Serve as the victim: the program, its shape, and a cgroup."""
    from leaks import Holdings

    program, shape, cgroup, shared, warm = sys.argv[1:]
    # Written without a system call, which might be one that fails.
    phase = mmap.mmap(int(shared), mmap.PAGESIZE)
    options = dict(SHAPES[shape])
    if shape == CGROUP:
        options["cgroup"] = cgroup
    command = ff.Command([program], **options)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    # The first thread of a process has libc handle a signal of its own, for good.
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    first = _end(_start(command)) if warm else None
    before = Holdings.now()
    while sys.stdin.readline():
        phase[0] = ATTACH
        signal.sigwait([signal.SIGUSR1])
        children = [_start(command) for _ in range(ROUNDS)]
        phase[0] = DETACH
        signal.sigwait([signal.SIGUSR1])
        results = [_end(child) for child in children]
        answer = {"results": results, "first": first, "after": _end(_start(command))}
        print(json.dumps({**answer, "leaks": before.leaks()}), flush=True)


@dataclass(frozen=True)
class Victim:
    """Such a process, and the system calls of one of its spawns."""

    process: subprocess.Popen[str]
    phase: mmap.mmap

    def spawn_under(self, *strace: str, log: Path) -> dict[str, Any]:
        """Let it spawn while strace runs with these options; the answer of the victim."""
        pid = self.process.pid
        assert self.process.stdin is not None and self.process.stdout is not None
        print("go", file=self.process.stdin, flush=True)
        self._wait_for(ATTACH)
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", log, *strace, "-p", str(pid)], stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        with tracer, tracer.stderr:
            try:
                line = tracer.stderr.readline()
                assert "attached" in line, line
                os.kill(pid, signal.SIGUSR1)
                self._wait_for(DETACH)
            finally:
                tracer.send_signal(signal.SIGINT)
        os.kill(pid, signal.SIGUSR1)
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def _wait_for(self, phase: int) -> None:
        deadline = time.monotonic() + 60
        while self.phase[0] != phase:
            assert self.process.poll() is None, "the victim has died"
            assert time.monotonic() < deadline, "a spawn hangs"
            time.sleep(0.001)


@contextmanager
def victim(program: Path, shape: str, cgroup: str = "", *, warm: bool = True) -> Iterator[Victim]:
    """Start one; it ends with the block.  A cold one has not spawned before strace comes."""
    shared = os.memfd_create("phase")
    os.ftruncate(shared, mmap.PAGESIZE)
    with mmap.mmap(shared, mmap.PAGESIZE) as phase:
        process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                os.fspath(program),
                shape,
                cgroup,
                str(shared),
                "warm" * warm,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[shared],
        )
        os.close(shared)
        with process:
            try:
                yield Victim(process, phase)
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(timeout=30) == 0
            finally:
                process.kill()


def calls_of(log: Path) -> Counter[str]:
    """How often each system call stands in a log of strace."""
    found: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        call = line.partition(" ")[2].lstrip().partition("(")[0]
        if call.isidentifier():
            found[call] += 1
    return found


if __name__ == "__main__":
    main()
