"""Zygote: the application's handle on a prepared interpreter that makes its workers."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Unpack

from pyforkfd._checks import MAX_INT, choice, flag, integer, items, pairs, show
from pyforkfd._entry_points import check_entry_point
from pyforkfd._options import WorkerOptions, list_options, names, refuse_unknown
from pyforkfd._process import Process
from pyforkfd._program import environment
from pyforkfd._spawn import Command

from ._birth import RequestLost
from ._errors import ZygoteError
from ._link import Configuration, Link, Scope
from ._request import Descriptors, request

_zygotes: weakref.WeakSet[Zygote] = weakref.WeakSet()
_shared: dict[Configuration, Zygote] = {}
_shared_lock = threading.Lock()
_KNOWN = names(WorkerOptions)


class Zygote:
    """A small process that has imported the modules of workers, and clones itself for each.

    The process starts at the first use, or at :meth:`start`; runs with one thread; ends with
    us, or at :meth:`close`.  If it has died, the next use starts another.  Workers are our
    own children, and live on without it.  Safe to use from many threads; in a forked child
    the zygote is not started yet.  As a context manager it closes at the end.

    Attributes:
        generation: number of processes that have been started.
    """

    generation: int
    _patience: float | None = None  # seconds for a birth; None: a slow import is no fault

    def __init__(
        self,
        *,
        preload: Iterable[str] = (),
        setup: str | None = None,
        freeze_gc: bool = True,
        env: Mapping[str, str] | None = None,
        rlimits: Mapping[int, tuple[int, int]] | None = None,
        warm: int = 0,
        parent_death_scope: Scope = "process",
        signal_mask: Iterable[int] | None = None,
        default_signals: Iterable[int] = (),
    ) -> None:
        """Describe a zygote; nothing is started yet.

        Args:
            preload: modules to import, in this order; ``"__main__"`` is the program's main
                module, imported as ``__mp_main__`` like in multiprocessing's children.
            setup: a function, as ``"package.module:function"``, called after the imports.
                It must leave no thread behind.
            freeze_gc: gc.freeze() before the first worker, so that its collector does not
                write to, and thereby copy, what was imported.
            env: the whole environment of the zygote, and of its workers unless they have
                their own; None: ours.  Variables that libraries read at import belong here,
                such as ``OPENBLAS_NUM_THREADS``.
            rlimits: resource -> (soft, hard), as :class:`Command` has it, for the zygote and for
                its workers unless they have their own; None: ours.
            warm: number of workers to make ahead: they wait for their function, and are
                replaced once taken.  A worker with namespaces or a cgroup is not one of them.
            parent_death_scope: the parent whose end the kernel signals to the zygote, and to
                workers with a parent_death_signal: "process" starts it from one long-lived
                thread; "thread" from the calling one, which is right for the main thread of a
                program that executes another in its place, where all other threads end.
            signal_mask: exactly these are blocked in the zygote while it imports; None: as in
                the thread that starts it.  Its workers have masks of their own.
            default_signals: reset to default in the zygote before it imports, such as those
                that we ignore; its workers begin with the handlers of the zygote.

        Raises:
            TypeError, ValueError: an argument makes no sense; the message begins with it.
        """
        modules = items(preload, "preload")
        for module in modules:
            if not isinstance(module, str):
                raise TypeError(f"preload: {show(module)} is not the name of a module")
        if setup is not None:
            check_entry_point(setup, "setup")
        choice(parent_death_scope, "parent_death_scope", ("process", "thread"))
        self._configuration = Configuration(
            preload=modules,
            setup=setup,
            freeze_gc=flag(freeze_gc, "freeze_gc"),
            env=None if env is None else tuple(sorted(_checked_environment(env).items())),
            rlimits=tuple(pairs(rlimits or {}, "rlimits")),
            warm=integer(warm, "warm", 0, MAX_INT, "a number of workers"),
            scope=parent_death_scope,
            signal_mask=None if signal_mask is None else tuple(signal_mask),
            default_signals=tuple(default_signals),
        )
        self.generation = 0
        self._forget()
        _watch_forks()
        _zygotes.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._end: weakref.finalize[[Link, int], Zygote] | None = None

    def _import_first(self, directories: Sequence[str]) -> None:
        """Import from these directories before any other; of a zygote that has not started."""
        self._configuration = replace(self._configuration, first=tuple(directories))

    @classmethod
    def shared(
        cls,
        *,
        preload: Iterable[str] = (),
        setup: str | None = None,
        freeze_gc: bool = True,
        env: Mapping[str, str] | None = None,
        warm: int = 0,
    ) -> Zygote:
        """Return the zygote of this configuration that the whole process shares."""
        new = cls(preload=preload, setup=setup, freeze_gc=freeze_gc, env=env, warm=warm)
        with _shared_lock:
            return _shared.setdefault(new._configuration, new)

    def start(self) -> None:
        """Start the zygote, if it does not run, and wait until everything is imported.

        Raises:
            ZygoteError: an import or the setup failed; its traceback is in the message.
            SpawnError: the interpreter could not be started.
        """
        self._running()

    def begin(self) -> int:
        """Start the zygote, if it does not run, and do not wait.

        Returns:
            A descriptor, borrowed, which is readable when :meth:`start` need not wait any more.

        Raises:
            SpawnError: the interpreter could not be started.
        """
        with self._lock:
            return self._link_now(wait=False).fileno()

    @property
    def pid(self) -> int | None:
        """The pid of the running zygote; None where none runs."""
        link = self._link
        return link.process.pid if link is not None and link.alive else None

    def refork(self) -> None:
        """Start a new zygote, from the code as it is now, and end its predecessor.

        Workers of the old one live on.  If the new one cannot be started, the old one stays.

        Raises:
            ZygoteError, SpawnError: as in :meth:`start`.
        """
        with self._lock:
            fresh = Link(self._configuration)
            old = self._replace(fresh)
        if old is not None:
            old.close()

    def close(self) -> None:
        """End the zygote and wait for its end; workers live on.  The next use starts another."""
        with self._lock:
            old = self._replace(None)
        if old is not None:
            old.close()

    def _replace(self, link: Link | None) -> Link | None:
        old, self._link = self._link, link
        if self._end is not None:
            self._end.detach()
            self._end = None
        if link is not None:
            self.generation += 1
            self._end = weakref.finalize(self, _close, link, os.getpid())
        return old

    def _running(self) -> Link:
        with self._lock:
            link = self._link_now(wait=True)
            try:
                link.settle()
            except BaseException:
                self._replace(None)
                link.close()
                raise
            return link

    def _link_now(self, *, wait: bool) -> Link:
        if self._link is not None:
            if self._link.alive or not self._link.settled:
                return self._link
            old = self._replace(None)
            assert old is not None
            old.close()
        link = Link(self._configuration, wait=wait)
        self._replace(link)
        return link

    def spawn(
        self,
        target: str,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[WorkerOptions],
    ) -> Process:
        """Start a worker: a clone of the zygote, and our child, that calls one function.

        Return when the worker has all its options, has found the function and is about to
        call it.  The options are those of :class:`Command`, applied by the same native code
        in the same order, and are all applied before the function's module is imported
        (unless it was preloaded) and its arguments unpickled.  Differences:

        - descriptors above 2 that ``fds`` names are close-on-exec, as all are in Python;
          descriptors of the preloaded code stay open, with numbers from 64 up;
        - signal handlers are those of the zygote, so Python's: ``default_signals`` names the
          signals to reset;
        - without an option, umask, limits, nice value and affinity are the zygote's;
          environment, directory, signal mask and standard streams are ours at the call;
        - ``parent_death_signal`` is sent when our *process* ends; ``seccomp`` must allow
          Python's own calls.

        The worker's process ends with the function: 0, or 1 after an exception, whose
        traceback goes to its stderr; SystemExit has its code.  Then threads that are no
        daemons are waited for, atexit functions that the worker registered are called (not
        those of the zygote) and streams are flushed, 120 if they cannot be.

        Args:
            target: ``"package.module:function"``.
            args: arguments, pickled.
            kwargs: keyword arguments, pickled.
            options: those of :class:`Command` that :class:`WorkerOptions` lists.

        Returns:
            The worker; the caller owns it, its pidfd and its pipes.

        Raises:
            SpawnError: an option could not be applied; nothing is left behind.
            ThreadsError: the zygote has threads, and names them.
            ZygoteError: the zygote could not be started; the function was not found, its
                arguments could not be unpickled; or the worker was killed meanwhile.
            TypeError, ValueError, LookupError: an option makes no sense; the message begins
                with it.
            ValueError: the zygote's code has one of the child's descriptors open.
        """
        check_entry_point(target, "target")
        if not options.keys() <= _KNOWN:
            refuse_unknown("Zygote.spawn", options, _KNOWN)
        descriptors = Descriptors.compile(options.pop("fds", None), options.pop("listen", None))
        env = options.pop("env", None)
        if env is not None:
            env = _checked_environment(env)
        command = _PLAIN
        if options:
            options.setdefault("default_signals", ())
            command = Command(_PLAIN.args, executable="/", **options)
        body = {"target": target, "args": _pickled(args, kwargs)}
        return self._spawn(target, command, descriptors, env, body)

    def _spawn(
        self,
        name: str,
        command: Command,
        descriptors: Descriptors,
        env: Mapping[str, str] | None,
        body: dict[str, Any],
    ) -> Process:
        for _ in range(2):
            link = self._running()
            body["env"] = self._environment(link, env)
            with request(name, command, descriptors, link.held, link.home, body) as wanted:
                try:
                    pid, pidfd = link.birth(wanted, self._patience)
                except RequestLost:
                    continue  # a fresh zygote may serve
                return Process(
                    (name,), pid, pidfd, "fork-like", wanted.take_ends(), wanted.writable
                )
        raise ZygoteError(f"the zygote was killed twice before it could start {name!r}")

    def _environment(self, link: Link, env: Mapping[str, str] | None) -> dict[str, str] | None:
        """Return the environment to send; None where the zygote has it already."""
        if env is None and self._configuration.env is None:
            env = None if link.has_environment() else os.environ
        return None if env is None else dict(env)

    def _free_targets(self, count: int) -> list[int]:
        """Return numbers above 2 that are free in a worker."""
        link = self._link
        held = (link if link is not None and link.settled else self._running()).held
        return list(itertools.islice((n for n in itertools.count(3) if n not in held), count))

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        pid = self.pid
        state = "not running" if pid is None else f"pid {pid}"
        return f"<Zygote {' '.join(self._configuration.preload)}: {state}>"


# A worker without options: to describe it again would cost as much as all else here.
_PLAIN = Command(("worker",), executable="/", default_signals=())
list_options(Zygote.spawn, WorkerOptions, Command, default_signals=())


def _pickled(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bytes:
    """Return the arguments of a function as the worker unpickles them."""
    positional = items(args, "args")
    named = {} if kwargs is None else dict(pairs(kwargs, "kwargs"))
    for name in named:
        if not isinstance(name, str):
            raise TypeError(f"kwargs: {show(name)} is not the name of an argument")
    try:
        return pickle.dumps((positional, named))
    except Exception:
        for option, value in (("args", positional), ("kwargs", named)):
            try:
                pickle.dumps(value)
            except Exception as error:
                raise TypeError(f"{option}: cannot be pickled: {error}") from error
        raise


def _checked_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a worker, which are checked all at once: that is cheaper."""
    given = pairs(env, "env")
    own = dict(given)
    try:
        names_of, values = os.fsencode("".join(own)), os.fsencode("".join(own.values()))
        if not (b"=" in names_of or b"\0" in names_of or b"\0" in values or "" in own):
            return own
    except Exception:
        pass  # one is no str, or cannot be encoded: the check one by one names it
    environment(given)
    raise TypeError("env: the variables of a worker are str")


def _close(link: Link, owner: int) -> None:
    if os.getpid() == owner:
        link.close()


def _after_fork_in_child() -> None:
    """Forget the parent's zygotes: their workers would not be our children."""
    global _shared_lock
    _shared_lock = threading.Lock()
    for zygote in list(_zygotes):
        link = zygote._link
        if zygote._end is not None:
            zygote._end.detach()
        zygote._forget()
        if link is not None:
            link.abandon()


@functools.cache  # a hook that has nothing to do costs every worker page faults all the same
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_after_fork_in_child)
