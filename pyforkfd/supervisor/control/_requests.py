"""The requests of the control socket: checked, then carried out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from pyforkfd.supervisor.state._events import Reloaded

from ._messages import Body, ControlError
from ._server import Client

T = TypeVar("T")

_DEFAULT_LINES = 100


class Supervised(Protocol):
    """The methods of a supervisor that requests call; see there."""

    def status(self) -> dict[str, Any]: ...

    def reload(
        self, reply: Callable[[Reloaded], None], *, only: frozenset[str] | None = None
    ) -> None: ...

    def roll_back(self, reply: Callable[[Reloaded], None]) -> None: ...

    def scale(self, component: str, count: int) -> None: ...

    def retire(self, worker_id: int, why: str) -> None: ...

    def stop(self, *, now: bool = False) -> None: ...

    def signal_component(self, component: str, signum: int | None = None) -> int: ...


class LogEntry(Protocol):
    """One line of the log and its origin."""

    @property
    def line(self) -> bytes: ...

    @property
    def origin(self) -> Any: ...  # it has the component's name


class Tail(Protocol):
    """The last lines of the log, and its followers."""

    def tail(
        self, count: int | None = None, *, components: Iterable[str] = ()
    ) -> Iterable[LogEntry]: ...

    def follow(self, callback: Callable[[Any], None]) -> int: ...

    def unfollow(self, handle: int) -> None: ...


class Requests:
    """The handler of a control socket's requests, which calls it with each."""

    def __init__(self, supervisor: Supervised) -> None:
        self._supervisor = supervisor
        self._tail: Tail | None = None

    def attach_logs(self, tail: Tail | None) -> None:
        """Set the log that the request ``logs`` reads.

        Args:
            tail: borrowed; None: there is no log.
        """
        self._tail = tail

    def __call__(self, client: Client, body: Body) -> None:
        """Reply to a request, now or later.

        Raises:
            ControlError, ValueError, OSError: the request is refused; the message has the
                reason.
        """
        match _get(body, "do", str):
            case "ping":
                client.reply()
            case "status":
                client.reply({"status": self._supervisor.status()})
            case "reload":
                names = _names(body, "components")
                client.defer("the supervisor ended before the new generation was ready")
                self._supervisor.reload(_reply(client), only=frozenset(names) or None)
            case "rollback":
                client.defer("the supervisor ended before it was rolled back")
                self._supervisor.roll_back(_reply(client))
            case "scale":
                component, count = _get(body, "component", str), _get(body, "count", int)
                self._supervisor.scale(component, count)
                client.reply()
            case "restart":
                worker_id = _get(body, "worker", int)
                self._supervisor.retire(worker_id, "requested on the control socket")
                client.reply()
            case "signal":
                signum = _get(body, "signal", int)
                if signum not in signal.valid_signals():
                    raise ControlError(f"signal: there is no signal {signum}")
                component = _get(body, "component", str)
                count = self._supervisor.signal_component(component, signum)
                client.reply({"workers": count})
            case "stop":
                client.defer("")  # the reply is sent at the end
                self._supervisor.stop(now=_get(body, "now", bool, False))
            case "logs":
                self._logs(client, body)
            case unknown:
                raise ControlError(
                    f"do: there is no request {unknown!r}; write ping, status, reload, rollback, "
                    "scale, restart, signal, stop or logs"
                )

    def _logs(self, client: Client, body: Body) -> None:
        if self._tail is None:
            raise ControlError("logs: this supervisor has no log; read its standard error")
        tail = self._tail
        names = _names(body, "components")
        count = _get(body, "lines", int, _DEFAULT_LINES)
        if count < 0:
            raise ControlError(f"lines: {count} is negative; write 0 or more")

        def stream(entry: LogEntry) -> None:
            if not names or entry.origin.component in names:
                client.stream({"lines": [_text(entry)]})

        # In one message: of so many, a client that reads slowly would be disconnected.
        client.stream({"lines": [_text(entry) for entry in tail.tail(count, components=names)]})
        if not _get(body, "follow", bool, False):
            client.reply()
            return
        handle = tail.follow(stream)
        client.defer("", lambda: tail.unfollow(handle))


def _text(entry: LogEntry) -> str:
    return entry.line.decode(errors="replace")


def _reply(client: Client) -> Callable[[Reloaded], None]:
    def reply(outcome: Reloaded) -> None:
        if outcome.why:
            client.refuse(outcome.why)
        else:
            client.reply({"generation": outcome.generation})

    return reply


def _get(body: Body, name: str, kind: type[T], default: T | None = None) -> T:
    value = body.get(name, default)
    # True is an int, but not meant as a number.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ControlError(f"{name}: {value!r} is not of type {kind.__name__}")
    return value


def _names(body: Body, name: str) -> list[str]:
    found = _get(body, name, list, [])
    if not all(isinstance(one, str) for one in found):
        raise ControlError(f"{name}: {found!r} is not a list of strings")
    return found
