"""Clients of pid_server.py: on connections that stay, and on a new one for each request."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from types import TracebackType

_PATIENCE = 20.0


class Load:
    """Threads that ask without a pause until it is left.

    Attributes:
        answers: pid -> how often it has answered.
        failures: what went wrong, whatever it was.
    """

    def __init__(self, port: int, *, kept: int = 2, fresh: int = 1) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self._address = ("127.0.0.1", port)
        self._end = threading.Event()
        self._more = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(most,), daemon=True)
            for most in [10**9] * kept + [1] * fresh
        ]

    def _run(self, most: int) -> None:
        while not self._end.is_set():
            try:
                self._connection(most)
            except OSError as error:
                self._failed(repr(error))

    def _connection(self, most: int) -> None:
        with socket.create_connection(self._address, timeout=_PATIENCE) as sock:
            for _ in range(most):
                sock.sendall(b"?\n")
                words = sock.recv(100).split()
                if not words:
                    self._failed("the connection was closed without an answer")
                    return
                with self._more:
                    self.answers[int(words[0])] += 1
                    self._more.notify_all()
                if len(words) > 1 or self._end.is_set():
                    return

    def _failed(self, why: str) -> None:
        with self._more:
            self.failures.append(why)
            self._more.notify_all()

    def wait_for(self, count: int) -> None:
        """Until so many more were answered."""
        with self._more:
            until = self.answers.total() + count
            done = self._more.wait_for(
                lambda: self.answers.total() >= until or bool(self.failures), _PATIENCE
            )
        assert done, f"fewer than {count} answers in {_PATIENCE} s"
        assert not self.failures, self.failures[:5]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
