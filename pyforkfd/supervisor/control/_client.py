"""The client of the control socket."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pyforkfd as ff
from pyforkfd._closing import Closing

from ._messages import Body, ControlError, parse, send
from ._path import find

_TIMEOUT = 10.0  # seconds; a reply takes none but where workers are waited for


class ControlClient(Closing):
    """A connection to a supervisor, for one request after another.  A context manager."""

    def __init__(self, path: str) -> None:
        """Connect.

        Args:
            path: path of the control socket, or ``@name`` in the abstract namespace.

        Raises:
            OSError: no supervisor listens there, or connecting is not permitted; the message
                has the path.
        """
        self._channel = ff.FdChannel.connect(path, timeout=_TIMEOUT)

    def request(self, do: str, *, timeout: float | None = _TIMEOUT, **fields: object) -> Body:
        """Send a request and wait for its reply.

        Args:
            do: the name of the request.
            timeout: seconds to wait; None: for ever.  Reload, rollback and stop take as long
                as the workers do.
            fields: further fields of the request, plain values.

        Returns:
            The reply's fields.

        Raises:
            ControlError: the request was refused, or failed; the message has the reason.
        """
        *_, reply = self.stream(do, timeout=timeout, **fields)
        return reply

    def stream(self, do: str, *, timeout: float | None = None, **fields: object) -> Iterator[Body]:
        """Send a request and yield its messages up to the reply, which is the last.

        Args:
            do: the name of the request.
            timeout: seconds to wait for each message; None: for ever.
            fields: further fields of the request, plain values.

        Raises:
            ControlError: as :meth:`request`.
        """
        try:
            send(self._channel, {"do": do, **fields})
        except (BrokenPipeError, ConnectionResetError):
            pass  # the supervisor has closed; its last message is still to be read
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
                raise ControlError(
                    f"{do}: no reply within {timeout:g} s: the supervisor hangs"
                ) from None
            except ConnectionResetError:
                if last:
                    break  # once: the request was not read, but the reason may have been sent
            except EOFError:
                break
        raise ControlError(
            f"{do}: the supervisor ended, or closed the connection, before its reply"
        )

    def close(self) -> None:
        """Close the connection; a request that was sent is carried out all the same."""
        self._channel.close()


def find_path(service: str | None) -> str:
    """Return the path of the control socket of a running service.

    Args:
        service: the name of the service; None: the only one that runs.

    Raises:
        ControlError: no such service runs, or several do; the message names them.
    """
    running = [(name, path) for name, path in find() if _has_listener(path)]
    found = [(name, path) for name, path in running if service in (None, name)]
    if len(found) == 1:
        return found[0][1]
    names = ", ".join(sorted({name for name, _ in running}))
    if found and service is None:
        raise ControlError(f"several services run here ({names}): name one with --service")
    if found:
        paths = ", ".join(path for _, path in found)
        raise ControlError(f"several services are called {service} ({paths}): use --control PATH")
    missing = "no service" if service is None else f"no service {service}"
    others = f" (there are {names})" if names else ""
    raise ControlError(
        f"{missing} runs here, or none with a control socket at its usual place{others}"
    )


def _has_listener(path: str) -> bool:
    try:
        ff.FdChannel.connect(path, timeout=_TIMEOUT).close()
    except OSError as error:
        # EACCES: the service runs, and the caller is to learn that connecting is not permitted.
        return error.errno == errno.EACCES
    return True
