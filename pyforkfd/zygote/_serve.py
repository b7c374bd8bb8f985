"""The zygote's own process: it imports once, then clones a worker for each request."""

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
from pyforkfd._errors import PassingError, ThreadsError
from pyforkfd._fd import Fd
from pyforkfd._targets import resolve
from pyforkfd._types import CloneFlag

from ._messages import MAX_FDS, SLOT, SLOT_PID, Kind, ProtocolError, Received, receive, send
from ._streams import flush, prepare_streams
from ._worker import Birthplace, rehearse, rehearsed_request, wait, work

# Below this nothing that the preloaded code opens gets its number, so that it is in nobody's
# way: LISTEN_FDS begins at 3.
_FLOOR = 64
_CHANNEL = 3
_A_MOMENT = 0.005  # seconds in which a short worker starts, and has ended
_REHEARSALS = 20  # the interpreter adapts its code to what it sees after a few


def main() -> NoReturn:
    """Become what the application says, serve until it closes its end, and end."""
    code = 0
    try:
        _live()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the application has gone
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
        send(channel, Kind.FAILED, (str(error), ""))  # says by its header what we speak
        return
    if not isinstance(message, Received):
        return
    page, application = message.fds
    zygote = Fd(os.pidfd_open(os.getpid()))
    with page:
        slot = mmap.mmap(page.fileno(), mmap.PAGESIZE)
    before = set(_open_numbers())
    body = message.body
    for what, step in _steps(body):
        try:
            step()
        except BaseException:
            trace = traceback.format_exc()
            send(channel, Kind.FAILED, (f"the zygote could not {what}", trace))
            return
    held = {fd: _target(fd) for fd in _open_numbers() if fd not in before}
    for fd in placeholders:
        os.close(fd)
    why_not = _core.why_not_clone(CloneFlag.PARENT)
    place = Birthplace(
        channel=channel,
        slot=slot,
        pid_slot=memoryview(slot)[SLOT_PID:],
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
    os._exit(0)  # here, where no descriptor is forgotten yet


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
    """What to do before the first worker, each step with what it is called in its error."""
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
    """What the preloaded code registered with atexit is not for workers."""
    atexit._clear()
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        atexit.register(util._exit_function)  # each process's own: it empties its queues


def _settle(*, freeze: bool) -> None:
    """Leave as little as possible that a worker would write to, and thereby copy."""
    gc.collect()
    if freeze:
        gc.freeze()
    gc.disable()  # each worker has it on again
    _core.trim_memory()
    # Ctrl-C is for the application and its workers, which have masks of their own.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _serve(place: Birthplace) -> None:
    """Answer requests: those that somebody waits for at once, the others after a moment.

    A worker made ahead replaces one that has just been taken, and whose start it would disturb.
    """
    ahead: deque[tuple[float, Received]] = deque()  # when each is due
    while True:
        if ahead:
            due, waiting = ahead[0]
            left = due - time.monotonic()
            if left <= 0 or not _core.wait_ready(place.channel.fileno(), select.POLLIN, left):
                ahead.popleft()
                _answer(place, waiting, ahead)
                continue
        elif not _core.wait_ready(place.channel.fileno(), select.POLLIN, 0):
            _receive_nothing()
        try:
            message = receive(place.channel)
        except PassingError:
            continue  # no room for its descriptors; the application sees its reply close
        if not isinstance(message, Received):
            return
        if message.kind is Kind.WARM:
            ahead.append((time.monotonic() + _A_MOMENT, message))
        else:
            _answer(place, message, ahead)


def _receive_nothing() -> None:
    """Copy, while nobody waits, the pages that a request has us write to before a birth."""
    with contextlib.suppress(OSError), rehearsed_request() as (message, _):
        for fd in message.fds:
            fd.close()


def _answer(place: Birthplace, message: Received, ahead: Iterable[tuple[float, Received]]) -> None:
    reply, *fds = message.fds
    body = message.body
    SLOT.pack_into(place.slot, 0, body["serial"], 0)
    flags, cgroup = 0, None
    if message.kind is Kind.SPAWN:
        flags = body["plan"][0].pop("namespaces", 0)
        cgroup = body["others"].pop("cgroup_fd", None)
    try:
        pid, pidfd = _clone(place, flags, -1 if cgroup is None else fds[cgroup].fileno())
    except ThreadsError as error:
        _tell(reply, Kind.REFUSED, ("threads", error.threads))
    except OSError as error:
        stage = ("clone", error.errno, str(error), "clone")
        _tell(reply, Kind.REFUSED, ("stage", stage))
    else:
        if pid == 0:
            place.channel.close()  # or the application would not see the zygote end
            for _, other in ahead:
                other.fds[0].close()
            if message.kind is Kind.WARM:
                wait(place, reply)
            work(place, body, reply, fds)
        _tell(reply, Kind.BORN, pid, [pidfd])
        os.close(pidfd)
    for fd in (reply, *fds):
        fd.close()


def _tell(reply: Fd, kind: Kind, body: object, fds: Sequence[int] = ()) -> None:
    try:
        send(reply, kind, body, fds)
    except (BrokenPipeError, ConnectionResetError):
        pass  # nobody waits for this one any more


def _clone(place: Birthplace, flags: int, cgroup: int) -> tuple[int, int]:
    if place.siblings:
        return core_clone(flags | CloneFlag.PARENT, 0, cgroup, place.pid_slot)
    return _fork_twice(place, flags, cgroup)


def _fork_twice(place: Birthplace, flags: int, cgroup: int) -> tuple[int, int]:
    """Make a grandchild whose parent ends at once, so that the application adopts it.

    It is a sub-reaper.  Where no sibling can be cloned: musl, or pid 1 of a pid namespace.
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
            SLOT.pack_into(place.slot, 0, SLOT.unpack_from(place.slot)[0], pid)
            code = 0
        except OSError as error:
            code = error.errno or 1
        os._exit(code)
    _, status = os.waitpid(between, 0)
    if (pid := SLOT.unpack_from(place.slot)[1]) == 0:
        raise OSError(os.waitstatus_to_exitcode(status), "fork for a worker")
    return pid, os.pidfd_open(pid)


def _enter_cgroup(cgroup: int) -> None:
    procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
    try:
        os.write(procs, b"0")
    finally:
        os.close(procs)
