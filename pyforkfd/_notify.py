"""Notify a service manager of the state of this process: sd_notify(3)."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable, Mapping

from ._checks import as_fd
from ._types import HasFileno


def notify(
    *,
    ready: bool = False,
    reloading: bool = False,
    stopping: bool = False,
    status: str | None = None,
    errno: int | None = None,
    main_pid: int | None = None,
    watchdog: bool = False,
    watchdog_failed: bool = False,
    watchdog_usec: int | None = None,
    extend_timeout_usec: int | None = None,
    fdstore: Mapping[str, Iterable[int | HasFileno]] | None = None,
    fdstore_remove: Iterable[str] = (),
    barrier: float | None = None,
    timeout: float | None = None,
    unset_environment: bool = False,
) -> bool:
    """Send the state of this process to the service manager that NOTIFY_SOCKET names.

    One datagram carries all fields of a call; each name of ``fdstore`` and of
    ``fdstore_remove`` needs one of its own, and they follow in order.

    Args:
        ready: READY=1: started, or a reload is finished.
        reloading: RELOADING=1 with MONOTONIC_USEC, as Type=notify-reload needs it.
        stopping: STOPPING=1.
        status: one line for people.
        errno: an error number, for a service that fails.
        main_pid: MAINPID, where another process is the service's main one.
        watchdog: WATCHDOG=1, the heartbeat that WatchdogSec= expects.
        watchdog_failed: WATCHDOG=trigger, as if the heartbeat had not come.
        watchdog_usec: a new period of the heartbeat, in microseconds.
        extend_timeout_usec: EXTEND_TIMEOUT_USEC, microseconds from now.
        fdstore: name -> descriptors (borrowed) that the manager is to hold when we have ended.
        fdstore_remove: names whose descriptors the manager is to close.
        barrier: seconds to wait until the manager has processed all of this.
        timeout: seconds to wait for each datagram while the manager's queue is full; None:
            without end.
        unset_environment: remove NOTIFY_SOCKET, so that children of ours do not use it.

    Returns:
        False where there is no NOTIFY_SOCKET, so that nothing was sent.

    Raises:
        ValueError: there is no field, or a value holds a line break, which would begin
            another field; or NOTIFY_SOCKET is no address that is known here.
        TimeoutError: the barrier was not passed in time, or the queue was full for that long.
        BlockingIOError: the queue is full, and ``timeout`` is 0.
        OSError: the manager's socket is gone or refuses us; the message names the address.
    """
    lines = {
        "READY": "1" if ready else None,
        "RELOADING": "1" if reloading else None,
        "MONOTONIC_USEC": time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        if reloading
        else None,
        "STOPPING": "1" if stopping else None,
        "STATUS": status,
        "ERRNO": errno,
        "MAINPID": main_pid,
        "WATCHDOG": "trigger" if watchdog_failed else "1" if watchdog else None,
        "WATCHDOG_USEC": watchdog_usec,
        "EXTEND_TIMEOUT_USEC": extend_timeout_usec,
    }
    messages: list[tuple[bytes, list[int]]] = []
    if fields := {name: value for name, value in lines.items() if value is not None}:
        messages.append((_message(fields), []))
    for name, sources in (fdstore or {}).items():
        fds = [as_fd(source, f"fdstore: {name}") for source in sources]
        messages.append((_message({"FDSTORE": 1, "FDNAME": _fd_name(name)}), fds))
    for name in fdstore_remove:
        messages.append((_message({"FDSTOREREMOVE": 1, "FDNAME": _fd_name(name)}), []))
    if not messages and barrier is None:
        raise ValueError("notify: no field is given")
    address = os.environ.get("NOTIFY_SOCKET")
    if unset_environment:
        os.environ.pop("NOTIFY_SOCKET", None)
    if not address:
        return False
    try:
        with _connect(address) as manager:
            manager.settimeout(timeout)
            for message, fds in messages:
                socket.send_fds(manager, [message], fds)
            if barrier is not None:
                _pass_barrier(manager, barrier)
    except TimeoutError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"notify {address}: {error.strerror}") from None
    return True


def _message(fields: Mapping[str, object]) -> bytes:
    for name, value in fields.items():
        if "\n" in str(value):
            raise ValueError(f"notify: line break in {name}={value!r}")
    return "\n".join(f"{name}={value}" for name, value in fields.items()).encode(
        errors="surrogateescape"
    )


def _fd_name(name: str) -> str:
    # sd_pid_notify_with_fds(3)
    if not 0 < len(name) <= 255 or ":" in name or not name.isascii() or not name.isprintable():
        raise ValueError(f"notify: {name!r} is no name for FDNAME")
    return name


def _connect(address: str) -> socket.socket:
    if address[0] not in "/@":
        raise ValueError(f"notify: NOTIFY_SOCKET={address} is neither a path nor abstract")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        path = os.fsencode(address)
        manager.connect(b"\0" + path[1:] if address[0] == "@" else path)
    except BaseException:
        manager.close()
        raise
    return manager


def _pass_barrier(manager: socket.socket, timeout: float) -> None:
    """Wait until the manager closes the writing end of a pipe, sd_notify_barrier(3)."""
    reader, writer = os.pipe()
    try:
        try:
            socket.send_fds(manager, [b"BARRIER=1"], [writer])
        finally:
            os.close(writer)
        passed = select.poll()
        passed.register(reader, 0)  # POLLHUP is always reported
        if not passed.poll(timeout * 1000):
            raise TimeoutError(f"notify: the barrier was not passed within {timeout} s")
    finally:
        os.close(reader)
