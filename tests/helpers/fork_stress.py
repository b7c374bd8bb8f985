"""fork_stress.py N forks.so: N forks, in three ways, beside 8 threads that change everything.

Each child checks its descriptors; the parent's are checked at the end.  Prints the errors and the
number of forks.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable

from forks import CLOSED
from leaks import Holdings

import pyforkfd as ff

THREADS = 8
FIXED, REDIRECTED, FREE = 200, 201, 202  # descriptor numbers
TOO_LONG = 900.0
look_in_c = ctypes.CDLL(sys.argv[2]).fork_and_look  # with the GIL released

wrong: list[str] = []
stop = threading.Event()


def check(ok: bool, what: str) -> None:
    if not ok:
        wrong.append(what)
        stop.set()


def look() -> int:
    """Check a child of a thread that is in no section; return the number of an error, or 0."""
    if os.readlink(f"/proc/self/fd/{REDIRECTED}") != os.devnull:
        return 1
    if os.path.exists(f"/proc/self/fd/{FREE}"):
        return 2
    if not ff.cloexec(FIXED):
        return 3
    with ff.inheriting(FIXED), ff.atfork.register(before=int):
        return 0  # no lock was left taken


def by_ours() -> int | None:
    child = ff.fork()
    if child is None:
        os._exit(look())
    with child:
        return child.wait().code


def by_os() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(look())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def by_c() -> int:
    # The child never returns to Python: another thread of the parent has the GIL.
    return int(look_in_c(FREE)) ^ CLOSED


def register(rng: random.Random) -> None:
    open_forks: list[int] = []

    def after() -> None:
        check(bool(open_forks), "an after without its before")
        open_forks.pop()

    with ff.atfork.register(
        before=lambda: open_forks.append(1),
        after_in_parent=after,
        after_in_child=after,
        order=rng.randint(-3, 3),
    ):
        opens(rng)


def act(rng: random.Random) -> None:
    with ff.atfork.in_child(close=[rng.randint(300, 400)], redirect={500: FIXED}):
        os.sched_yield()


def opens(rng: random.Random) -> None:
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(rng.randint(1, 20))]
    with ff.no_forks():
        for fd in fds:
            os.set_inheritable(fd, True)
            os.set_inheritable(fd, False)
    for fd in fds:
        os.close(fd)


def redirect(rng: random.Random) -> None:
    in_: str = rng.choice(["both", "parent", "child"])
    with ff.redirected({REDIRECTED: FIXED, FREE: FIXED}, in_=in_):  # type: ignore[arg-type]
        os.sched_yield()


def inherit(rng: random.Random) -> None:
    with ff.inheriting(FIXED):
        os.sched_yield()


def churn(number: int) -> None:
    rng = random.Random(number)
    work: list[Callable[[random.Random], None]] = [register, act, opens, redirect, inherit]
    try:
        while not stop.is_set():
            rng.choice(work)(rng)
    except BaseException as error:
        check(False, f"thread {number}: {error!r}")


def main() -> None:
    forks = int(sys.argv[1])
    warnings.simplefilter("ignore")  # the other threads are intended
    sys.setswitchinterval(1e-5)  # or each fork waits for eight turns of others
    faulthandler.dump_traceback_later(TOO_LONG, exit=True)
    null = os.open(os.devnull, os.O_RDWR)
    memory = os.memfd_create("fixed")
    os.dup2(memory, FIXED, inheritable=False)
    os.dup2(null, REDIRECTED, inheritable=False)
    ways = [by_ours, by_os, by_ours, by_c]
    before = Holdings.now()
    threads = [threading.Thread(target=churn, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    done = 0
    while done < forks and not stop.is_set():
        way = ways[done % len(ways)]
        code = way()
        check(code == 0, f"a child of {way.__name__} found {code}")
        done += 1
    stop.set()
    for thread in threads:
        thread.join()
    gc.collect()
    check(not ff.atfork.stats(), f"still registered: {ff.atfork.stats()}")
    wrong.extend(before.leaks())
    print(*wrong, f"{done} forks", sep="\n")


if __name__ == "__main__":
    main()
