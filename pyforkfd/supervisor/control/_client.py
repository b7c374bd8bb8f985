"""The other end of the control socket."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pyforkfd as ff
from pyforkfd._closing import Closing

from ._messages import Body, ControlError, parse, send
from ._path import find

_PATIENCE = 10.0  # seconds for the supervisor to accept us: its loop never waits for long


class ControlClient(Closing):
    """A connection to a supervisor, for one request after the other.  A context manager."""

    def __init__(self, path: str) -> None:
        """Connect.

        Args:
            path: of the control socket, or ``@name`` in the abstract namespace.

        Raises:
            OSError: nobody listens there, or we may not connect; it names the path.
        """
        self._channel = ff.FdChannel.connect(path, timeout=_PATIENCE)

    def request(self, do: str, *, timeout: float | None = _PATIENCE, **fields: object) -> Body:
        """Ask, and wait for the answer.

        Args:
            do: the name of the request.
            timeout: seconds to wait; None: as long as it takes, which for reload, rollback
                and stop is as long as workers take.
            fields: its fields, plain values.

        Returns:
            The answer's fields.

        Raises:
            ControlError: it was refused, or failed, and why.
        """
        *_, answer = self.stream(do, timeout=timeout, **fields)
        return answer

    def stream(self, do: str, *, timeout: float | None = None, **fields: object) -> Iterator[Body]:
        """Ask, and take what comes until the answer, which is the last.

        Args:
            do: the name of the request.
            timeout: seconds to wait for each message; None: without end.
            fields: its fields, plain values.

        Raises:
            ControlError: as :meth:`request`.
        """
        try:
            send(self._channel, {"do": do, **fields})
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has closed; what it said before that is still to be read
        while True:
            body = self._receive(do, timeout)
            if body.get("ok") is False:
                raise ControlError(str(body.get("error")))
            yield body
            if body.get("ok"):
                return

    def _receive(self, do: str, timeout: float | None) -> Body:
        for last in (False, True):
            try:
                with self._channel.recv(timeout=timeout) as message:
                    return parse(message)
            except TimeoutError:
                raise ControlError(f"{do}: no answer within {timeout:g} s: it hangs") from None
            except ConnectionResetError:
                if last:
                    break  # once: it has not read our request, but may have said why
            except EOFError:
                break
        raise ControlError(f"{do}: the supervisor ended, or dropped us, before its answer")

    def close(self) -> None:
        """Close the connection; a request that waits goes on without us."""
        self._channel.close()


def find_path(service: str | None) -> str:
    """The control socket of a service that runs.

    Args:
        service: its name; None: the only one there is.

    Raises:
        ControlError: there is none, or several, and which.
    """
    living = [(name, path) for name, path in find() if _is_listened_to(path)]
    found = [(name, path) for name, path in living if service in (None, name)]
    if len(found) == 1:
        return found[0][1]
    names = ", ".join(sorted({name for name, _ in living}))
    if found and service is None:
        raise ControlError(f"several services run here ({names}): name one with --service")
    if found:
        paths = ", ".join(path for _, path in found)
        raise ControlError(f"several services are called {service} ({paths}): use --control PATH")
    what = "no service runs here" if service is None else f"no service {service} runs here"
    there = f" (there are {names})" if names else ""
    raise ControlError(f"{what}, or none with a control socket at its usual place{there}")


def _is_listened_to(path: str) -> bool:
    try:
        ff.FdChannel.connect(path, timeout=_PATIENCE).close()
    except OSError as error:
        # EACCES: it runs, and whoever tries is to hear that it is not his.
        return error.errno == errno.EACCES
    return True
