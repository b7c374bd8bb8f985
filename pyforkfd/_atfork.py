"""At-fork handlers with names, an order and an end; and what children do without Python."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType

from . import _core
from ._checks import as_fd
from ._types import HasFileno

__all__ = ["HandlerStats", "PhaseStats", "Registration", "in_child", "register", "stats"]


@functools.cache  # it has no unregister; and a hook that has nothing to do costs every fork
def _watch_forks() -> None:
    os.register_at_fork(
        before=_core.run_before,
        after_in_parent=_core.run_after_in_parent,
        after_in_child=_core.run_after_in_child,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStats:
    """How one function of a handler has run, in this process and those it was forked from.

    Attributes:
        calls: how often.
        failures: how often it raised.
        total_ns: nanoseconds of all calls together.
        longest_ns: nanoseconds of the longest.
    """

    calls: int
    failures: int
    total_ns: int
    longest_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStats:
    """What one registration has cost.

    Attributes:
        name: of the handler.
        order: as registered.
        before: of its ``before``; zeros where it has none.
        after_in_parent: of its ``after_in_parent``.
        after_in_child: of its ``after_in_child``, or of the actions of :func:`in_child`,
            counted in the children: a process knows those it went through itself.
    """

    name: str
    order: int
    before: PhaseStats
    after_in_parent: PhaseStats
    after_in_child: PhaseStats


class Registration:
    """Something that runs around forks, until it is unregistered.

    Made by :func:`register` and :func:`in_child`.  Dropping it changes nothing.  As a
    context manager it unregisters at the end.

    Attributes:
        name: what errors and statistics call it.
        order: as given.
    """

    __slots__ = ("__weakref__", "_undo", "name", "order")

    def __init__(self, name: str, order: int) -> None:
        self.name = name
        self.order = order
        self._undo: list[Callable[[], object]] = []

    def unregister(self) -> None:
        """End it; a second time it does nothing.

        Also from a handler.  None of its functions starts after this, in a fork that is
        under way neither; one that runs in another thread runs on.  Actions of
        :func:`in_child` are over when this returns: a fork that another thread has under way
        is waited for.
        """
        try:
            undo = self._undo.pop()  # atomic: one thread ends it
        except IndexError:
            return
        undo()

    @property
    def registered(self) -> bool:
        """It is, still."""
        return bool(self._undo)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unregister()

    def __repr__(self) -> str:
        state = "" if self.registered else ", unregistered"
        return f"<at-fork handler {self.name!r}{state}>"


_actions: dict[Registration, _core.ChildActions] = {}


def register(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
    name: str | None = None,
    order: int = 0,
) -> Registration:
    """Call functions around every fork that the interpreter makes or is told of.

    That is :func:`fork`, os.fork, os.forkpty, multiprocessing's fork method and
    subprocess with ``preexec_fn``; not fork(2) in C, not vfork, not posix_spawn, not our
    spawn: they run no Python (:func:`in_child` reaches the second).

    ``before`` is called last in, first out, the others first in, first out, as
    pthread_atfork(3) has it.  ``order`` comes before the time of registration: a handler of
    a lower order is as if registered earlier, so it is the outer one.  All of them together
    have the one place among os.register_at_fork's functions that the first of them got.

    Handlers may register and unregister handlers, and threads may while another one forks.
    Who takes part in a fork is settled when it begins: one registered later waits for the
    next, so nobody gets an ``after`` without a ``before``.  One unregistered is not called
    any more.

    What a function raises goes to sys.unraisablehook, with this registration as
    ``object``, and the rest go on.  Except ``before`` in :func:`fork`, which may refuse.

    Args:
        before: called in the parent before the fork, holding the fork lock in :func:`fork`.
        after_in_parent: called in the parent after it, also if the fork has failed.
        after_in_child: called in the child, whose only thread this is.
        name: for errors and :func:`stats`; without it, the name of the first function.
        order: see above.

    Raises:
        TypeError: there is no function, or one is not callable.
    """
    functions = (before, after_in_parent, after_in_child)
    given = [function for function in functions if function is not None]
    if not given:
        raise TypeError("register: no function is given")
    for function in given:
        if not callable(function):
            raise TypeError(f"register: {function!r} cannot be called")
    registration = Registration(name if name is not None else _name(given[0]), order)
    _watch_forks()
    number = _core.add_at_fork(functions, registration, order)
    registration._undo.append(lambda: _core.remove_at_fork(number))
    return registration


def in_child(
    *,
    close: Iterable[int | HasFileno] = (),
    cloexec: Iterable[int | HasFileno] = (),
    redirect: Mapping[int, int | HasFileno] | None = None,
    rebuild_epoll: Iterable[int | HasFileno] = (),
    name: str | None = None,
    order: int = 0,
) -> Registration:
    """Do something to the descriptors of every child, before any other code runs in it.

    For every child of libc's fork(), which C libraries call too: with the GIL and without,
    by pthread_atfork(3), in system calls alone.  Nothing runs for vfork, posix_spawn and
    our spawn.  First all is redirected, then closed, then marked, and then epolls are made
    anew.  A number that is not open then is passed over.  Children of children do it again.

    Nobody tells Python objects of the child: a socket whose descriptor was closed must not
    be closed there, but detached.

    Args:
        close: descriptors that the child shall not have.  Their numbers are taken down, so
            unregister before they are closed here, or others get them.
        cloexec: descriptors to mark FD_CLOEXEC in the child; as above.
        redirect: number to descriptor, as dup2 would; duplicated until unregistered, so
            they may be closed here.
        rebuild_epoll: epolls, of select.epoll or of any library (borrowed), that the child
            shall not share: under the number comes a new instance, close-on-exec as that one
            was, which watches what the inherited one does, with the same events and data,
            where the number is here and still that file (/proc/PID/fdinfo, proc(5); kcmp(2),
            and where that is refused, files that share an inode, such as eventfds, are not
            told apart).  It is read as the child begins, so a change that the parent makes
            meanwhile may be in it; a disarmed EPOLLONESHOT entry hears of errors again.  One
            of a registration may watch another.
            Whatever fails, the child does not keep the parent's instance: without /proc, or a
            free number (EMFILE), the new one watches nothing, and if none can be made the
            number is closed; :func:`stats` counts it as a failure.  Taken down as above.
        name: for :func:`stats`.
        order: as with :func:`register`, among native handlers.

    Raises:
        ValueError: nothing is asked for, a number is negative, or two of redirected, closed
            and rebuilt.
        OSError: EBADF, a source or an epoll is not open or a number not below
            RLIMIT_NOFILE; EINVAL, it is no epoll; EMFILE.
    """
    closed = [as_fd(fd, "close") for fd in close]
    marked = [as_fd(fd, "cloexec") for fd in cloexec]
    moved = [
        (as_fd(number, "redirect"), as_fd(fd, "redirect"))
        for number, fd in (redirect or {}).items()
    ]
    rebuilt = list(dict.fromkeys(as_fd(fd, "rebuild_epoll") for fd in rebuild_epoll))
    targets = [number for number, _ in moved]
    if not (closed or marked or moved or rebuilt):
        raise ValueError("in_child: nothing is asked for")
    for one, first, other, second in (
        ("redirected", targets, "closed", closed),
        ("rebuilt", rebuilt, "closed", closed),
        ("rebuilt", rebuilt, "redirected", targets),
    ):
        for number in set(first) & set(second):
            raise ValueError(f"in_child: {number} is both {one} and {other}")
    words = [
        ("close", closed),
        ("cloexec", marked),
        ("redirect", targets),
        ("rebuild", rebuilt),
    ]
    what = ", ".join(f"{verb} {' '.join(map(str, fds))}" for verb, fds in words if fds)
    registration = Registration(name if name is not None else what, order)
    actions = _core.ChildActions(closed, marked, moved, rebuilt, order)
    _actions[registration] = actions

    def undo() -> None:
        actions.unregister()
        _actions.pop(registration, None)

    registration._undo.append(undo)
    return registration


def stats() -> list[HandlerStats]:
    """What each handler has cost, in the order of the list, then the actions of children."""
    found = [
        HandlerStats(
            name=registration.name,
            order=registration.order,
            before=_phase(before),
            after_in_parent=_phase(parent),
            after_in_child=_phase(child),
        )
        for registration, before, parent, child in _core.at_fork_handlers()
    ]
    none = _phase((0, 0, 0, 0))
    for registration, actions in list(_actions.items()):
        found.append(
            HandlerStats(
                name=registration.name,
                order=registration.order,
                before=none,
                after_in_parent=none,
                after_in_child=_phase(actions.timing()),
            )
        )
    return found


def _phase(numbers: tuple[int, int, int, int]) -> PhaseStats:
    calls, failures, total, longest = numbers
    return PhaseStats(calls=calls, failures=failures, total_ns=total, longest_ns=longest)


def _name(function: Callable[[], object]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
