"""A worker, from its birth to its end: all that runs in the clone of the zygote."""

from __future__ import annotations

import atexit
import contextlib
import gc
import mmap
import os
import pickle
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pyforkfd import _core
from pyforkfd._channel import FdChannel
from pyforkfd._entry_points import resolve
from pyforkfd._errors import PassingError
from pyforkfd._fd import Fd

from ._errors import in_a_line
from ._messages import MAX_FDS, Kind, Received, answer_pair, receive, send
from ._streams import flush, forget_streams, reopen_streams

_LISTEN = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NOT_BORN = 127
_REHEARSALS = 2  # of an idle worker; the second does not reuse all memory that the first freed


def _nothing() -> None:
    """Do nothing, as the function of a rehearsed request."""


def _rehearsed_body() -> dict[str, Any]:
    name, function = "pyforkfd.zygote._context", "rehearse"
    if name not in sys.modules:
        name, function = __name__, _nothing.__name__
    return {
        "target": f"{name}:{function}",
        "args": pickle.dumps(((), {})),
        "env": dict(os.environ),
        "cwd": None,
        "plan": ({"close_others": False}, [], []),
        "sources": 0,
        "others": {},
    }


@dataclass(frozen=True, slots=True)
class Birthplace:
    """The parts of the zygote that its worker inherits.

    Attributes:
        channel: to the application.
        slots: the page shared with the application.
        application: the application's pidfd.
        application_pid: the application's pid.
        zygote: the zygote's pidfd.
        held: descriptors that the preloaded code has opened; they stay open.
        gc_enabled: whether the preloaded code left the collector enabled.
        siblings: whether workers are made by CLONE_PARENT.
    """

    channel: FdChannel
    slots: mmap.mmap
    application: Fd
    application_pid: int
    zygote: Fd
    held: list[int]
    gc_enabled: bool
    siblings: bool


def wait(place: Birthplace, reply: Fd) -> NoReturn:
    """Wait for a request, as an idle worker; end with the application and the zygote.

    Their pidfds are polled: a forked child of the application may hold our connection's other
    end, so that it is not closed when the application ends.
    """
    poll = select.poll()
    for fd in (reply, place.application, place.zygote):
        poll.register(fd, select.POLLIN)
    for _ in range(_REHEARSALS):
        if not poll.poll(0):
            rehearse(place)
    if reply.fileno() in dict(poll.poll()):
        try:
            message = receive(reply, MAX_FDS)
        except PassingError:
            failure = ("the worker could not receive its descriptors", traceback.format_exc())
            send(reply, Kind.FAILED, ("zygote", failure))
        else:
            if isinstance(message, Received):
                work(place, message.body, reply, list(message.fds))
    os._exit(0)


@contextlib.contextmanager
def rehearsed_request() -> Iterator[tuple[Received, Fd]]:
    """Send a request without effect and receive it: the message, and its connection."""
    ours, theirs = answer_pair()
    with ours, theirs:
        send(ours, Kind.SPAWN, _rehearsed_body(), [0])
        message = receive(theirs, MAX_FDS)
        assert isinstance(message, Received)
        yield message, theirs


def rehearse(place: Birthplace) -> None:
    """Run a request without effect, by the code that runs a real one.

    In the zygote, so that caches are filled and functions found before the clone; in an idle
    worker, so that the pages written to are copied while no request waits.
    """
    forget_streams()
    with rehearsed_request() as (message, theirs):
        fds = list(message.fds)
        numbers = [fd.fileno() for fd in fds]
        # The same descriptors; closing the copies is left to us.
        lent = replace(
            place,
            application=Fd(place.application.fileno()),
            zygote=Fd(place.zygote.fileno()),
            gc_enabled=False,
        )
        with Fd(_become(lent, message.body, Fd(theirs.fileno()), fds)) as answers:
            function, args, kwargs = _prepare(answers, message.body, lent.gc_enabled)
            send(answers, Kind.STARTED, None)
        for number in numbers:
            os.close(number)
        function(*args, **kwargs)
        flush()


def work(place: Birthplace, body: dict[str, Any], reply: Fd, fds: list[Fd]) -> NoReturn:
    """Apply the request, report the start, call the function, and exit."""
    code = _NOT_BORN
    try:
        with Fd(_become(place, body, reply, fds)) as answers:
            function, args, kwargs = _prepare(answers, body, place.gc_enabled)
            code = 1  # from here on an exception, such as of Ctrl-C, is the worker's own
            send(answers, Kind.STARTED, None)
        code = call(function, *args, **kwargs)
    except _Refused:
        pass
    except (BrokenPipeError, ConnectionResetError):
        pass  # the application has ended, or its call was interrupted
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class _Refused(Exception):
    """The request cannot be served, and the application has received the reason."""


def _become(place: Birthplace, body: dict[str, Any], reply: Fd, fds: list[Fd]) -> int:
    """Apply the plan; return the number of the reply, the only descriptor beside the plan's."""
    # From here on numbers mean other files, or none: no object may close one of them.
    numbers = [fd.detach() for fd in fds]
    answer: int = reply.detach()
    place.zygote.detach()
    application = place.application.detach()
    if (cwd := body["cwd"]) is not None:
        os.fchdir(numbers[cwd])
    plan, number = _core.plan_of_worker(body["plan"], place.held, answer)
    for option, index in body["others"].items():
        setattr(plan, option, numbers[index])
    sources = numbers[: body["sources"]]
    try:
        _core.become(plan, sources, place.application_pid, application, number)
    except _core.SysError as error:
        with Fd(answer) as answers:
            send(answers, Kind.FAILED, ("stage", error.args))
        raise _Refused from None
    return number


def _prepare(
    answers: Fd, body: dict[str, Any], gc_enabled: bool
) -> tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]:
    """Set up what a fresh interpreter has; return the function and its arguments."""
    _set_environment(body["env"], body.get("listen"))
    reopen_streams()
    reseed()
    if gc_enabled:
        gc.enable()
    target = body["target"]
    what = f"find {target}"
    try:
        function = resolve(target)
        what = f"unpickle the arguments of {target}"
        args, kwargs = pickle.loads(body["args"])
    except BaseException as error:
        text = f"could not {what}: {in_a_line(error)}"
        send(answers, Kind.FAILED, ("zygote", (text, traceback.format_exc())))
        raise _Refused from None
    return function, args, kwargs


def _set_environment(env: dict[str, str] | None, listen: list[str] | None) -> None:
    if env is not None:
        for name in os.environ.keys() - env.keys():
            del os.environ[name]
        for name, value in env.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
    if listen is None:
        return
    for name in _LISTEN:
        os.environ.pop(name, None)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(listen))
    os.environ["LISTEN_FDNAMES"] = ":".join(listen)
    if (inode := _core.own_pidfd_inode()) is not None:
        os.environ["LISTEN_PIDFDID"] = str(inode)


def reseed() -> None:
    """Seed the generator of numpy, so that no two workers draw the same numbers.

    :mod:`random` does so itself after a fork, and so does OpenSSL since 1.1.1, the oldest that
    Python supports: RAND_bytes(3) notices the change of process.
    """
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()


def call(function: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """Call the worker's function, shut the interpreter down, and return the exit code."""
    try:
        function(*args, **kwargs)
        code = 0
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # joins all but daemon threads
        atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    return code if flush() else code or 120


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1
