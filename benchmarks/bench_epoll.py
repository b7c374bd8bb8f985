"""Is a fork-safe selector slower than the standard one?

Both take turns in one process: a wait that finds one socket of many ready, a register with its
unregister, a modify.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from selectors import EVENT_READ, BaseSelector, EpollSelector

import pyforkfd as ff

SOCKETS = 100  # registered beside the one that is ready
CALLS = 2000  # in a round
ROUNDS, QUICK_ROUNDS = 60, 5
SELECT, REGISTER, MODIFY = "select", "register + unregister", "modify"
SELECTORS: dict[str, Callable[[], BaseSelector]] = {
    "pyforkfd.ForkSafeSelector": ff.ForkSafeSelector,
    "selectors.EpollSelector": EpollSelector,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of processor time per call: the median of all rounds, and the best."""

    what: str
    selector: str
    median_us: float
    best_us: float


def select(selector: BaseSelector, fresh: socket.socket) -> None:
    for _ in range(CALLS):
        selector.select(1)


def register(selector: BaseSelector, fresh: socket.socket) -> None:
    for _ in range(CALLS):
        selector.register(fresh, EVENT_READ)
        selector.unregister(fresh)


def modify(selector: BaseSelector, fresh: socket.socket) -> None:
    selector.register(fresh, EVENT_READ)
    for i in range(CALLS):
        selector.modify(fresh, 1 + i % 2)
    selector.unregister(fresh)


def measure(quick: bool) -> list[Cost]:
    """Measure all selectors in turns; no call waits, so processor time is taken."""
    jobs = {SELECT: select, REGISTER: register, MODIFY: modify}
    taken: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        selectors = {name: stack.enter_context(make()) for name, make in SELECTORS.items()}
        pairs = [socket.socketpair() for _ in range(SOCKETS + 2)]
        for one, other in pairs:
            stack.enter_context(one)
            stack.enter_context(other)
        for selector in selectors.values():
            for one, _ in pairs[1:]:
                selector.register(one, EVENT_READ)
        pairs[1][1].send(b"ready")
        for _ in range(QUICK_ROUNDS if quick else ROUNDS):
            for what, job in jobs.items():
                for name, selector in selectors.items():
                    begin = time.thread_time()
                    job(selector, pairs[0][0])
                    spent = (time.thread_time() - begin) / CALLS * 1e6
                    taken.setdefault((what, name), []).append(spent)
    return [
        Cost(what, name, statistics.median(spent), min(spent))
        for (what, name), spent in taken.items()
    ]


if __name__ == "__main__":
    for row in measure("--quick" in sys.argv):
        print(f"{row.what:22} {row.selector:26} {row.median_us:6.2f} {row.best_us:6.2f}")
