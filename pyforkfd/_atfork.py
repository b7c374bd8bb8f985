"""At-fork handlers with names, an order and an end; and native actions of every child."""

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
    """The calls of one function of a handler, in this process and those it was forked from.

    Attributes:
        calls: number of calls.
        failures: number of calls that raised.
        total_ns: nanoseconds of all calls together.
        longest_ns: nanoseconds of the longest.
    """

    calls: int
    failures: int
    total_ns: int
    longest_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStats:
    """The cost of one registration.

    Attributes:
        name: the handler's name.
        order: its order, as registered.
        before: calls of its ``before``; zeros where it has none.
        after_in_parent: calls of its ``after_in_parent``.
        after_in_child: calls of its ``after_in_child``, or runs of the actions of
            :func:`in_child`, counted in the children: a process has the count of the forks
            that led to it.
    """

    name: str
    order: int
    before: PhaseStats
    after_in_parent: PhaseStats
    after_in_child: PhaseStats


class Registration:
    """A handler or an action that runs around forks, until it is unregistered.

    Made by :func:`register` and :func:`in_child`.  Dropping it changes nothing.  As a
    context manager it unregisters at the end.

    Attributes:
        name: its name in errors and statistics.
        order: its order, as registered.
    """

    __slots__ = ("__weakref__", "_undo", "name", "order")

    def __init__(self, name: str, order: int) -> None:
        self.name = name
        self.order = order
        self._undo: list[Callable[[], object]] = []

    def unregister(self) -> None:
        """Unregister the handler; do nothing if that was done already.

        A handler may call this too.  No function of the registration starts afterwards, not
        even in a fork that is under way; one that runs in another thread runs on.  For
        actions of :func:`in_child` this waits until a fork that is under way in another
        thread is over.
        """
        try:
            undo = self._undo.pop()  # atomic: one thread ends it
        except IndexError:
            return
        undo()

    @property
    def registered(self) -> bool:
        """Whether the handler is still registered."""
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
    """Call functions around every fork that the interpreter makes or is notified of.

    These are :func:`fork`, os.fork, os.forkpty, multiprocessing's fork method and
    subprocess with ``preexec_fn``; not fork(2) in C, not vfork, not posix_spawn, not our
    spawn: these run no Python (:func:`in_child` reaches fork(2) in C).

    ``before`` is called last in, first out, the others first in, first out, as
    pthread_atfork(3) has it.  ``order`` comes before the time of registration: a handler of
    a lower order is as if registered earlier, so it is the outer one.  All of them together
    have the one place among os.register_at_fork's functions that the first of them got.

    Handlers may register and unregister handlers, and so may threads while another one
    forks.  The handlers of a fork are settled when it begins: one registered later waits for
    the next, so none gets an ``after`` without a ``before``.  One unregistered is not called
    any more.

    An exception goes to sys.unraisablehook, with this registration as ``object``, and the
    other functions are called all the same; but an exception of ``before`` in :func:`fork`
    refuses the fork.

    Args:
        before: called in the parent before the fork, holding the fork lock in :func:`fork`.
        after_in_parent: called in the parent after it, also if the fork has failed.
        after_in_child: called in the child, whose only thread this is.
        name: a name for errors and :func:`stats`; None: the name of the first function.
        order: see above.

    Returns:
        The registration, by which the handler is unregistered.

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
    registration = Registration(name if name is not None else _name_of(given[0]), order)
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
    """Change the descriptors of every child, before any other code runs in it.

    For every child of libc's fork(), which C libraries call too: with the GIL and without,
    by pthread_atfork(3), in system calls alone.  Nothing runs for vfork, posix_spawn and
    our spawn.  First descriptors are redirected, then closed, then marked, and then epolls
    are rebuilt.  A number that is not open then is passed over.  Children of children do it
    again.

    Python objects in the child are not notified: a socket whose descriptor was closed must
    not be closed there, but detached.

    Args:
        close: descriptors that the child shall not have.  Their numbers are recorded:
            unregister before they are closed here, or the numbers mean other files.
        cloexec: descriptors to mark FD_CLOEXEC in the child; as above.
        redirect: number to descriptor, as dup2 would; duplicated until unregistered, so
            they may be closed here.
        rebuild_epoll: epolls, of select.epoll or of any library (borrowed), that the child
            shall not share: a new instance takes the number, close-on-exec as the inherited
            one was.  It watches the same descriptors with the same events and data, as far
            as each number is still that file in the child (/proc/PID/fdinfo, proc(5);
            kcmp(2); where that is refused, files that share an inode, such as eventfds, are
            not distinguished).  The set is read as the child begins, so a change that the
            parent makes meanwhile may be in it; a disarmed EPOLLONESHOT entry reports errors
            again.  One epoll of a registration may watch another.
            Whatever fails, the child does not share the parent's instance: without /proc, or
            a free number (EMFILE), the new one watches nothing, and if none can be made the
            number is closed; :func:`stats` counts it as a failure.  Recorded as above.
        name: a name for :func:`stats`; None: a list of the actions.
        order: as with :func:`register`, among native handlers.

    Returns:
        The registration, by which the actions are unregistered.

    Raises:
        ValueError: there is no action, a number is negative, or one number is two of
            redirected, closed and rebuilt.
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
        raise ValueError("in_child: no action is given")
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
    actions_text = ", ".join(f"{verb} {' '.join(map(str, fds))}" for verb, fds in words if fds)
    registration = Registration(name if name is not None else actions_text, order)
    actions = _core.ChildActions(closed, marked, moved, rebuilt, order)
    _actions[registration] = actions

    def undo() -> None:
        actions.unregister()
        _actions.pop(registration, None)

    registration._undo.append(undo)
    return registration


def stats() -> list[HandlerStats]:
    """Return the cost of each handler, in the order of calls, then of the actions of children."""
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


def _name_of(function: Callable[[], object]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
