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
from typing import Any

from pyforkfd._entry_points import check_entry_point
from pyforkfd._process import Process
from pyforkfd._spawn import Command, Namespace
from pyforkfd._types import Capabilities, FdSource, HasFileno, Keep, Scheduler, StrPath

from ._birth import RequestLost
from ._errors import ZygoteError
from ._link import Configuration, Link, Scope
from ._request import request

_zygotes: weakref.WeakSet[Zygote] = weakref.WeakSet()
_shared: dict[Configuration, Zygote] = {}
_shared_lock = threading.Lock()


class Zygote:
    """A small process that has imported what workers need, and clones itself for each.

    It starts at the first use, or at :meth:`start`; runs with one thread; ends with us, or at
    :meth:`close`.  If it has died, the next use starts another.  Workers are our own
    children, and live on without it.  Safe to use from many threads; in a forked child it is
    as if it had not started yet.  As a context manager it closes at the end.

    Attributes:
        generation: how many zygotes have been started.
    """

    generation: int

    def __init__(
        self,
        *,
        preload: Iterable[str] = (),
        setup: str | None = None,
        freeze_gc: bool = True,
        env: Mapping[str, str] | None = None,
        warm: int = 0,
        parent_death_scope: Scope = "process",
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
                their own; None is ours.  What libraries read at import goes here, such as
                ``OPENBLAS_NUM_THREADS``.
            warm: how many workers to make ahead: they wait for a request, and are replaced
                once taken.  A worker with namespaces or a cgroup is always made anew.
            parent_death_scope: whose end the parent-death signals of the zygote and its workers
                follow: "process" starts it from one long-lived thread; "thread" from the one
                that needs it, which is right for the main thread of a program that
                executes another in its place, where all other threads end.
        """
        if warm < 0:
            raise ValueError(f"warm: {warm} is negative: it is a number of workers")
        if isinstance(preload, str):
            raise TypeError(f"preload: {preload!r} is a string, not a sequence of names")
        if setup is not None:
            check_entry_point(setup, "setup")
        self._configuration = Configuration(
            preload=tuple(preload),
            setup=setup,
            freeze_gc=freeze_gc,
            env=None if env is None else tuple(sorted(env.items())),
            warm=warm,
            scope=parent_death_scope,
        )
        self.generation = 0
        self._forget()
        _watch_forks()
        _zygotes.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._end: weakref.finalize[[Link, int], Zygote] | None = None

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
        made = cls(preload=preload, setup=setup, freeze_gc=freeze_gc, env=env, warm=warm)
        with _shared_lock:
            return _shared.setdefault(made._configuration, made)

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

        Workers of the old one live on.  If the new one cannot be started the old one stays.

        Raises:
            ZygoteError, SpawnError: as :meth:`start`.
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
        env: Mapping[str, str] | None = None,
        cwd: StrPath | int | HasFileno | None = None,
        fds: Mapping[int, FdSource] | None = None,
        listen: Mapping[str, int | HasFileno] | None = None,
        new_session: bool = False,
        process_group: int | None = None,
        controlling_terminal: StrPath | int | HasFileno | None = None,
        foreground: bool | int | HasFileno = False,
        umask: int | None = None,
        rlimits: Mapping[int, tuple[int, int]] | None = None,
        nice: int | None = None,
        cpu_affinity: Iterable[int] | None = None,
        scheduler: Scheduler | None = None,
        user: str | int | None = None,
        group: str | int | Keep | None = None,
        extra_groups: Iterable[str | int] | Keep | None = None,
        capabilities: Capabilities | None = None,
        no_new_privs: bool = False,
        parent_death_signal: int | None = None,
        chroot: StrPath | None = None,
        namespaces: Iterable[Namespace] = (),
        seccomp: bytes | None = None,
        cgroup: StrPath | int | HasFileno | None = None,
        signal_mask: Iterable[int] | None = None,
        default_signals: Iterable[int] = (),
        ignore_signals: Iterable[int] = (),
    ) -> Process:
        """Start a worker: a clone of the zygote, and our child, that calls one function.

        Returns when the worker has all that was asked for, has found the function and is
        about to call it.  The options are those of :class:`Command`, applied by the same
        native code in the same order, and are all applied before the function's module is
        imported (unless it was preloaded) and its arguments unpickled.  Differences:

        - descriptors above 2 that ``fds`` names are close-on-exec, as all are in Python;
          what the preloaded code has open stays open, with numbers from 64 up;
        - signal handlers are those of the zygote, so Python's: ``default_signals`` names what
          is to be reset;
        - what is not said here is as in the zygote: umask, limits, nice value, affinity;
          environment, directory, signal mask and standard streams are ours at the call.

        The worker's process ends with the function: 0, or 1 after an exception, whose
        traceback goes to its stderr; SystemExit has its code.  Then threads that are no
        daemons are waited for, atexit functions that the worker registered are called (not
        those of the zygote) and streams are flushed, 120 if they cannot be.

        Args:
            target: ``"package.module:function"``.
            args: arguments, pickled.
            kwargs: keyword arguments, pickled.
            env: the whole environment; None is ours now, or the zygote's if it has its own.
            cwd: as for Command; so are all that follow.
            fds: see above.
            listen: the same, with LISTEN_FDS and kin in the worker's environment.
            new_session: setsid(2).
            process_group: setpgid(2).
            controlling_terminal: path or descriptor.
            foreground: make its group the terminal's foreground group.
            umask: file mode creation mask.
            rlimits: resource -> (soft, hard).
            nice: the nice value itself.
            cpu_affinity: numbers of processors.
            scheduler: policy and priority.
            user: name or uid.
            group: name or gid.
            extra_groups: names or gids.
            capabilities: capability sets.
            no_new_privs: prctl PR_SET_NO_NEW_PRIVS.
            parent_death_signal: sent to the worker when our *process* ends.
            chroot: new root directory.
            namespaces: new namespaces, without maps of ids.
            seccomp: filter program; it must allow what Python does.
            cgroup: directory in the cgroup v2 tree; the worker is born there.
            signal_mask: exactly these are blocked; None: as in the calling thread.
            default_signals: reset to default.
            ignore_signals: ignored.

        Returns:
            The worker; the caller owns it, its pidfd and its pipes.

        Raises:
            SpawnError: an option could not be applied; nothing is left behind.
            ThreadsError: the zygote has threads, and names them.
            ZygoteError: the zygote could not be started; the function was not found, its
                arguments could not be unpickled; or the worker was killed meanwhile.
            ValueError: an option makes no sense; a target is open in the zygote's code.
        """
        check_entry_point(target, "target")
        options: dict[str, Any] = {
            "cwd": cwd,
            "new_session": new_session,
            "process_group": process_group,
            "controlling_terminal": controlling_terminal,
            "foreground": foreground,
            "umask": umask,
            "rlimits": rlimits,
            "nice": nice,
            "cpu_affinity": cpu_affinity,
            "scheduler": scheduler,
            "user": user,
            "group": group,
            "extra_groups": extra_groups,
            "capabilities": capabilities,
            "no_new_privs": no_new_privs,
            "parent_death_signal": parent_death_signal,
            "chroot": chroot,
            "namespaces": namespaces,
            "seccomp": seccomp,
            "cgroup": cgroup,
            "signal_mask": signal_mask,
            "default_signals": default_signals,
            "ignore_signals": ignore_signals,
        }
        said = {name: value for name, value in options.items() if value is not _UNSAID[name]}
        command = replace(_PLAIN, **said) if said else _PLAIN
        body = {"target": target, "args": pickle.dumps((tuple(args), dict(kwargs or {})))}
        return self._spawn(target, command, fds, listen, env, body)

    def _spawn(
        self,
        name: str,
        command: Command,
        fds: Mapping[int, FdSource] | None,
        listen: Mapping[str, int | HasFileno] | None,
        env: Mapping[str, str] | None,
        body: dict[str, Any],
    ) -> Process:
        for _ in range(2):
            link = self._running()
            body["env"] = self._environment(link, env)
            with request(name, command, fds, listen, link.held, link.home, body) as wanted:
                try:
                    pid, pidfd = link.birth(wanted)
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


# Cached: to make a Command without options costs as much as the rest of a spawn's preparation.
_PLAIN = Command(("worker",), executable="/", default_signals=())
_UNSAID: dict[str, Any] = Zygote.spawn.__kwdefaults__ or {}


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
