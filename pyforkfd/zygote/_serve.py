"""The zygote's process: imports once, then clones a worker for each request."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from pyforkfd import _core
from pyforkfd._channel import FdChannel
from pyforkfd._clone import core_clone, demand_one_thread
from pyforkfd._entry_points import resolve
from pyforkfd._errors import PassingError, ThreadsError
from pyforkfd._fd import Fd
from pyforkfd._standard_streams import restore_standard_streams
from pyforkfd._types import CloneFlag

from ._errors import in_a_line
from ._messages import (
    MAX_FDS,
    SLOT,
    Kind,
    ProtocolError,
    Received,
    pid_of,
    receive,
    send,
    slot_of,
)
from ._pools import end_pools, remedy
from ._streams import flush, prepare_streams
from ._worker import Birthplace, rehearse, rehearsed_request, wait, work

# What the preloaded code opens gets numbers from here up, so that those below are free for
# workers: LISTEN_FDS begins at 3.
_FLOOR = 64
_CHANNEL = 3
_WARM_DELAY = 0.005  # seconds in which a short worker starts and ends
_REHEARSALS = 20  # the interpreter specializes its code after a few calls


def main() -> NoReturn:
    """Apply the application's configuration, serve until its end is closed, and exit."""
    code = 0
    restore_standard_streams()  # or what is opened here would be a worker's output
    try:
        _live()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the application has ended
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def _live() -> None:
    channel = FdChannel(_lifted(_CHANNEL), max_fds=MAX_FDS)
    placeholders = _reserve()
    try:
        message = receive(channel)
    except ProtocolError as error:
        send(channel, Kind.FAILED, (str(error), ""))  # its header has our version
        return
    if not isinstance(message, Received):
        return
    page, application = message.fds
    zygote = Fd(os.pidfd_open(os.getpid()))
    with page:
        slots = mmap.mmap(page.fileno(), mmap.PAGESIZE)
    before = set(_open_numbers())
    body = message.body
    for what, step in _steps(body):
        try:
            step()
        except BaseException as error:
            text = f"the zygote could not {what}: {in_a_line(error)}"
            send(channel, Kind.FAILED, (text, traceback.format_exc()))
            return
    held = {fd: _target(fd) for fd in _open_numbers() if fd not in before}
    for fd in placeholders:
        os.close(fd)
    end_pools()
    why_not = _core.why_not_clone(CloneFlag.PARENT)
    place = Birthplace(
        channel=channel,
        slots=slots,
        application=application,
        application_pid=body["pid"],
        zygote=zygote,
        held=list(held),
        gc_enabled=gc.isenabled(),
        siblings=not why_not,
    )
    flush()
    _forget_exit_functions()
    for _ in range(_REHEARSALS):
        rehearse(place)
    prepare_streams()
    _settle(freeze=body["freeze_gc"])
    send(channel, Kind.READY, {"held": held, "why_not": why_not})
    _serve(place)
    os._exit(0)  # here, before any descriptor's owner is finalized


def _lifted(fd: int) -> int:
    try:
        lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FLOOR)
    except OSError:
        return fd
    os.close(fd)
    return lifted


def _reserve() -> list[int]:
    """Take every free number below the floor."""
    fds = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    try:
        while fds[-1] < _FLOOR:
            fds.append(fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, 3))
    except OSError:
        pass  # RLIMIT_NOFILE is lower: what there is
    return fds


def _open_numbers() -> list[int]:
    return [row[0] for row in _core.fd_table(0)]


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        return f"unknown ({error.strerror})"


def _steps(body: dict[str, Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the steps before the first worker, each with its description for errors."""
    sys.path[:] = body["path"]
    sys.argv[:] = body["argv"]
    if (main_module := body["main"]) is not None:
        from multiprocessing import process, spawn

        current = process.current_process()
        current._inheriting = True  # type: ignore[attr-defined]  # so it may start no process
        if "init_main_from_name" in main_module:
            name = main_module["init_main_from_name"]
            yield f"import {name}", lambda: spawn._fixup_main_from_name(name)  # type: ignore[attr-defined]
        elif "init_main_from_path" in main_module:
            path = main_module["init_main_from_path"]
            yield f"run {path}", lambda: spawn._fixup_main_from_path(path)  # type: ignore[attr-defined]
        del current._inheriting  # type: ignore[attr-defined]
    for module in body["preload"]:
        yield f"import {module}", functools.partial(importlib.import_module, module)
    if (setup := body["setup"]) is not None:
        yield f"run {setup}", lambda: resolve(setup)()
    if "multiprocessing" in sys.modules:  # or each of its processes would import this
        name = "pyforkfd.zygote._context"
        yield f"import {name}", functools.partial(importlib.import_module, name)


def _forget_exit_functions() -> None:
    """Clear what the preloaded code registered with atexit: it is not for workers."""
    atexit._clear()
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        atexit.register(util._exit_function)  # every process needs it: it empties the queues


def _settle(*, freeze: bool) -> None:
    """Minimize the pages that a worker would write to, and thereby copy."""
    gc.collect()
    if freeze:
        gc.freeze()
    gc.disable()  # each worker enables it again
    _core.trim_memory()
    # The terminal's Ctrl-C and its end are for the application and its workers, which have masks
    # of their own.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])


def _serve(place: Birthplace) -> None:
    """Answer requests: for workers at once, for idle workers after a delay.

    An idle worker replaces one that has just been taken, whose start its birth would disturb.
    """
    ahead: deque[tuple[float, Received]] = deque()  # with the time at which each is due
    while True:
        if ahead:
            due, waiting = ahead[0]
            left = due - time.monotonic()
            if left <= 0 or not _core.wait_ready(place.channel.fileno(), select.POLLIN, left):
                ahead.popleft()
                _answer(place, waiting, ahead)
                continue
        elif not _core.wait_ready(place.channel.fileno(), select.POLLIN, 0):
            _rehearse_receiving()
        try:
            message = receive(place.channel)
        except PassingError:
            continue  # descriptors used up; the application's end of the answers is closed
        if not isinstance(message, Received):
            return
        if message.kind is Kind.WARM:
            ahead.append((time.monotonic() + _WARM_DELAY, message))
        else:
            _answer(place, message, ahead)


def _rehearse_receiving() -> None:
    """Copy, while no request waits, the pages that receiving one writes to."""
    with contextlib.suppress(OSError), rehearsed_request() as (message, _):
        for fd in message.fds:
            fd.close()


def _answer(place: Birthplace, message: Received, ahead: Iterable[tuple[float, Received]]) -> None:
    reply, *fds = message.fds
    body = message.body
    serial = body["serial"]
    SLOT.pack_into(place.slots, slot_of(serial), serial, 0)
    flags, cgroup = 0, None
    if message.kind is Kind.SPAWN:
        flags = body["plan"][0].pop("namespaces", 0)
        cgroup = body["others"].pop("cgroup_fd", None)
    try:
        cgroup_fd = -1 if cgroup is None else fds[cgroup].fileno()
        pid, pidfd = _clone(place, serial, flags, cgroup_fd)
    except ThreadsError as error:
        _send(reply, Kind.REFUSED, ("threads", (error.threads, remedy())))
    except OSError as error:
        stage = ("clone", error.errno, str(error), "clone")
        _send(reply, Kind.REFUSED, ("stage", stage))
    else:
        if pid == 0:
            # A worker may become another user's, and must not write what the kernel does.
            place.slots.close()
            place.channel.close()  # or the zygote's end would not close it
            for _, other in ahead:
                other.fds[0].close()
            if message.kind is Kind.WARM:
                wait(place, reply)
            work(place, body, reply, fds)
        _send(reply, Kind.BORN, pid, [pidfd])
        os.close(pidfd)
    for fd in (reply, *fds):
        fd.close()


def _send(reply: Fd, kind: Kind, body: object, fds: Sequence[int] = ()) -> None:
    try:
        send(reply, kind, body, fds)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the application does not wait for this worker any more


def _clone(place: Birthplace, serial: int, flags: int, cgroup: int) -> tuple[int, int]:
    if place.siblings:
        return core_clone(flags | CloneFlag.PARENT, 0, cgroup, pid_of(place.slots, serial))
    return _fork_twice(place, serial, flags, cgroup)


def _fork_twice(place: Birthplace, serial: int, flags: int, cgroup: int) -> tuple[int, int]:
    """Fork a grandchild whose parent exits at once, so that the application adopts it.

    The application is a sub-reaper.  Used where no sibling can be cloned: on musl, or as pid 1
    of a pid namespace.
    """
    if flags:
        raise OSError(38, "clone: namespaces need a clone that is refused here")
    demand_one_thread()
    between = os.fork()
    if between == 0:
        own = os.getpid()
        code = 1
        try:
            if cgroup >= 0:
                _enter_cgroup(cgroup)
            if (pid := os.fork()) == 0:
                while os.getppid() == own:
                    os.sched_yield()
                return 0, -1
            SLOT.pack_into(place.slots, slot_of(serial), serial, pid)
            code = 0
        except OSError as error:
            code = error.errno or 1
        os._exit(code)
    _, status = os.waitpid(between, 0)
    if (pid := SLOT.unpack_from(place.slots, slot_of(serial))[1]) == 0:
        raise OSError(os.waitstatus_to_exitcode(status), "fork for a worker")
    return pid, os.pidfd_open(pid)


def _enter_cgroup(cgroup: int) -> None:
    procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
    try:
        os.write(procs, b"0")
    finally:
        os.close(procs)
