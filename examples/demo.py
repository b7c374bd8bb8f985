"""Pass a listener to a program, then compare the time of starting a child with other ways.

A TCP listener is passed to a freshly executed program as descriptor 3; that program
accepts, and the client receives the child's pid as its answer.  Exits non-zero if any
step fails.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyforkfd as ff

PROGRAM = Path(__file__).with_name("echo_pid.py")
TRUE = "/bin/true"
ROUNDS = 200


def hand_over_a_listener() -> None:
    """Pass a listener to a child; raise unless the child answers a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        print(f"parent {os.getpid()} listens on 127.0.0.1:{port}, descriptor {listener.fileno()}")
        child = ff.spawn([sys.executable, "-I", PROGRAM], fds={3: listener})
    with child:
        print(f"child  {child.pid} has it as descriptor 3 (started by {child.backend})")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            answer = b"".join(iter(lambda: client.recv(64), b""))
        print(f"client got its answer from {answer.decode()}")
        status = child.wait(timeout=20)
    print(f"child  {child.pid}: {status}")
    if int(answer) != child.pid or not status.success:
        raise SystemExit("the answer did not come from the child")


def _fork_exec() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(TRUE, [TRUE])
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def _posix_spawn() -> None:
    os.waitpid(os.posix_spawn(TRUE, [TRUE], os.environ), 0)


def _spawn(start: Callable[[], ff.Process]) -> None:
    child = start()
    child.wait()
    child.close()


def start_times() -> dict[str, float]:
    """Return the median time from start to exit of /bin/true, in microseconds, by way."""
    command = ff.Command([TRUE])
    ways: dict[str, Callable[[], object]] = {
        "Command.spawn": lambda: _spawn(command.spawn),
        "spawn": lambda: _spawn(lambda: ff.spawn([TRUE])),
        "os.posix_spawn": _posix_spawn,
        "subprocess.Popen": lambda: subprocess.Popen([TRUE]).wait(),
        "os.fork + exec": _fork_exec,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        # Shuffled: os.fork leaves the parent's pages write-protected for the next way.
        for name, way in random.sample(list(ways.items()), len(ways)):
            begin = time.perf_counter()
            way()
            taken[name].append((time.perf_counter() - begin) * 1e6)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Run the hand-over, then print the table for a small and a big parent."""
    hand_over_a_listener()
    small = start_times()
    ballast = bytearray(256 << 20)
    ballast[::4096] = b"\1" * len(ballast[::4096])
    big = start_times()
    print(f"\nstart and wait for {TRUE}, median of {ROUNDS}, microseconds")
    print(f"{'':18}{'small parent':>14}{'256 MB parent':>15}")
    for name in small:
        print(f"{name:18}{small[name]:>14.0f}{big[name]:>15.0f}")
    del ballast


if __name__ == "__main__":
    main()
