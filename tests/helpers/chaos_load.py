"""Load of the chaos test: clients that judge each failed request by the kills of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

PATIENCE = 20.0  # seconds for an answer; workers that were all killed come back sooner
_FRESH, _KEPT = 2, 1  # clients of each component
_PAUSE = 0.01  # seconds between two requests of a client: the processors are for the service

Address = tuple[str, int] | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A time in which requests to a component may fail.

    Attributes:
        component: its name; empty: all of them.
        begun: when the kill was sent.
        over: when the process was gone.
        pid: of the worker; None: the service was not there.
    """

    component: str
    begun: float
    over: float
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without an answer.

    Attributes:
        component: that was to answer.
        begun: when the connection was requested, or with ``pid`` the request was sent.
        over: when the error was seen.
        error: text.
        pid: of the worker that has the connection, where an earlier answer has told.
    """

    component: str
    begun: float
    over: float
    error: str
    pid: int | None = None

    def excused_by(self, outage: Outage) -> bool:
        """Whether the worker that served it was, or may have been, the one that was killed."""
        if outage.component not in ("", self.component):
            return False
        if self.pid is not None and outage.pid is not None:
            return self.pid == outage.pid
        return outage.begun <= self.over and self.begun <= outage.over


@dataclass
class Load:
    """Clients of all components, on new connections and on one that stays.  A context manager.

    Attributes:
        addresses: component -> where it listens.
        one_shot: components whose workers close a connection after its answer.
        answers: component -> count.
        slowest: seconds of the slowest answer.
        outages: of the test's doing.
        excused: how many requests a killed worker has lost.
    """

    addresses: Mapping[str, Address]
    one_shot: frozenset[str] = frozenset()
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    outages: list[Outage] = field(default_factory=list)
    excused: int = 0
    _failures: list[Failure] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for name in self.addresses:
            for most in [1] * _FRESH + [1 if name in self.one_shot else 1000] * _KEPT:
                thread = threading.Thread(target=self._run, args=(name, most), name=f"load {name}")
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, seconds: float = PATIENCE) -> list[str]:
        """Wait until each component has answered once more; return the names of the others."""
        with self._changed:
            before = self.answers.copy()

            def silent() -> list[str]:
                return [name for name in self.addresses if self.answers[name] == before[name]]

            self._changed.wait_for(lambda: not silent(), seconds)
            return silent()

    def unexcused(self) -> list[Failure]:
        """Return the failures that no kill explains, and forget all that there are.

        A kill explains no more failures than there are clients of its component: each has one
        request at a time.  To be called when no kill is under way.
        """
        with self._changed:
            failures, self._failures = self._failures, []
        left = {id(outage): _FRESH + _KEPT for outage in self.outages}
        found = []
        for failure in failures:
            for outage in reversed(self.outages):
                if failure.excused_by(outage) and (outage.pid is None or left[id(outage)] > 0):
                    left[id(outage)] -= 1
                    self.excused += outage.pid is not None
                    break
            else:
                found.append(failure)
        return found

    def _run(self, component: str, most: int) -> None:
        while not self._end.is_set():
            self._connection(component, most)
            self._end.wait(_PAUSE)

    def _connection(self, component: str, most: int) -> None:
        begun, pid = time.monotonic(), None
        try:
            with _connect(self.addresses[component]) as sock:
                for _ in range(most):
                    sock.sendall(b"?\n")
                    words = sock.recv(100).split()
                    now = time.monotonic()
                    if not words:
                        raise EOFError("closed without an answer")
                    with self._changed:
                        self.answers[component] += 1
                        self.slowest = max(self.slowest, now - begun)
                        self._changed.notify_all()
                    pid = next(int(word) for word in words if word.isdigit())
                    if b"close" in words or self._end.wait(_PAUSE if most > 1 else 0.0):
                        return
                    begun = time.monotonic()
        except (OSError, EOFError) as error:
            text = f"{error!r} after {time.monotonic() - begun:.3f} s"
            failure = Failure(
                component=component, begun=begun, over=time.monotonic(), error=text, pid=pid
            )
            with self._changed:
                self._failures.append(failure)


def _connect(address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
