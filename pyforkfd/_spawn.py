"""A child described by data: Command, compiled once, and spawn, a Command used once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Unpack, cast

from . import _core
from ._checks import PYTHON_IGNORES, flag, items
from ._compile import (
    compile_confinement,
    compile_namespaces,
    compile_parent_death,
    compile_resources,
    compile_signals,
    compile_terminal,
)
from ._credentials import compile_capabilities, compile_identity
from ._errors import from_core
from ._fds import FdSources, compile_fds, writable_ends
from ._options import CommandOptions, list_options, names, refuse_unknown
from ._pipeline import Pipeline
from ._process import Process, _forgotten, reap_forgotten
from ._program import compile_program
from ._types import (
    Backend,
    Capabilities,
    FdSource,
    HasFileno,
    IdMaps,
    Keep,
    Namespace,
    Scheduler,
    StrPath,
)

_KNOWN = names(CommandOptions)
# Options that may be an iterator, which can be read once, but is compiled by each replace().
_ITERATED = frozenset(
    "cpu_affinity extra_groups namespaces uid_map gid_map "
    "signal_mask default_signals ignore_signals".split()
)


@dataclass(frozen=True, init=False)
class Command:
    """A child, described completely.  Frozen, and safe to spawn from many threads at once.

    Every descriptor is borrowed: it stays the caller's, and must be open at each spawn.
    The order in which the options take effect is that of :data:`STAGES`; all of them run
    in the child between clone and exec without any code of the parent's.

    Args:
        args: the program and its arguments.
        executable: the program, where it is not ``args[0]``: a path, or a descriptor open
            on it (execveat(2); not a ``#!`` script, which its interpreter could not open).
            A name without a slash is searched for along PATH of the child's environment,
            as execvpe(3) does, without its fall-back to /bin/sh.
        argv0: the child's own name, instead of ``args[0]``.
        env: the whole environment; None is the C environment as it is at the spawn.
        cwd: directory as path or descriptor, entered with the child's credentials.
        fds: child's number -> our descriptor or DEVNULL, PIPE, INHERIT, Open(...), ...
            0, 1 and 2 are ours where the map does not name them (CLOSED leaves one out).
        close_others: no descriptor but those of ``fds`` is open in the child; False passes
            on inheritable descriptors, as exec does.
        listen: name -> listening socket, passed as 3, 4, ... with LISTEN_FDS,
            LISTEN_FDNAMES, LISTEN_PID and (Linux 6.9) LISTEN_PIDFDID: sd_listen_fds(3).
        new_session: setsid(2).
        process_group: setpgid(2); 0 is a group of its own.
        controlling_terminal: path or descriptor; needs new_session.
        foreground: make the child's group the terminal's foreground group: True takes
            the controlling terminal.
        umask: file mode creation mask.
        rlimits: resource -> (soft, hard), ``resource.RLIM_INFINITY`` for none.
        nice: the nice value itself, -20 to 19.
        cpu_affinity: numbers of the processors that the child may run on.
        scheduler: scheduling policy and priority.
        user: name or uid.  Also sets the user's group and extra groups; env, HOME included, stays.
        group: name or gid; KEEP leaves the group alone.
        extra_groups: names or gids; KEEP leaves them alone.
        capabilities: capability sets.
        no_new_privs: prctl PR_SET_NO_NEW_PRIVS.
        parent_death_signal: signal to the child when the parent dies, prctl(2).
        parent_death_scope: "process" starts the child from one long-lived thread, since
            the kernel watches the *thread* that created it (its CPU affinity, scheduling
            and thread credentials are then those of that thread); "thread" is the calling one.
        chroot: new root directory; without ``cwd`` the working directory is then "/".
        namespaces: new namespaces for the child, namespaces(7).
        uid_map: (inside, outside, count) lines, user_namespaces(7).
        gid_map: the same for groups; without CAP_SETGID setgroups(2) is denied inside.
        seccomp: classic BPF program as bytes (array of struct sock_filter), installed
            last: it need allow no more than execve and the calls of the program.
        cgroup: directory in the cgroup v2 tree, path or descriptor: CLONE_INTO_CGROUP
            (Linux 5.7), else the child enters before anything else.
        signal_mask: the signals that are blocked in the child; None: as in the calling thread.
        default_signals: signals to reset to default; those with handlers always are.
        ignore_signals: signals that the child ignores.

    Raises:
        TypeError, ValueError, LookupError: a value makes no sense; nothing was started.
    """

    args: Sequence[StrPath]
    _: KW_ONLY
    executable: StrPath | int | HasFileno | None = None
    argv0: StrPath | None = None
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None
    cwd: StrPath | int | HasFileno | None = None
    fds: Mapping[int, FdSource] | None = None
    close_others: bool = True
    listen: Mapping[str, int | HasFileno] | None = None
    new_session: bool = False
    process_group: int | None = None
    controlling_terminal: StrPath | int | HasFileno | None = None
    foreground: bool | int | HasFileno = False
    umask: int | None = None
    rlimits: Mapping[int, tuple[int, int]] | None = None
    nice: int | None = None
    cpu_affinity: Iterable[int] | None = None
    scheduler: Scheduler | None = None
    user: str | int | None = None
    group: str | int | Keep | None = None
    extra_groups: Iterable[str | int] | Keep | None = None
    capabilities: Capabilities | None = None
    no_new_privs: bool = False
    parent_death_signal: int | None = None
    parent_death_scope: Literal["process", "thread"] = "process"
    chroot: StrPath | None = None
    namespaces: Iterable[Namespace] = ()
    uid_map: IdMaps = ()
    gid_map: IdMaps = ()
    seccomp: bytes | None = None
    cgroup: StrPath | int | HasFileno | None = None
    signal_mask: Iterable[int] | None = None
    default_signals: Iterable[int] = PYTHON_IGNORES
    ignore_signals: Iterable[int] = ()
    _plan: _core.SpawnPlan = field(init=False, repr=False, compare=False)
    _sources: FdSources = field(init=False, repr=False, compare=False)
    _program: str = field(init=False, repr=False, compare=False)
    _writable: frozenset[int] = field(init=False, repr=False, compare=False)

    def __init__(self, args: Sequence[StrPath], **options: Unpack[CommandOptions]) -> None:
        if not options.keys() <= _KNOWN:
            refuse_unknown("Command", options, _KNOWN)
        values = self.__dict__  # an option that is not in it has the default of its class
        values.update(options)
        plan = _core.SpawnPlan()
        values["args"], program = compile_program(
            plan, args, self.executable, self.argv0, self.env, self.cwd
        )
        sources = compile_fds(plan, self.fds, self.listen)
        if options:
            self._compile(plan, values)
        compile_signals(plan, self.signal_mask, self.default_signals, self.ignore_signals)
        values |= {
            "_plan": plan,
            "_sources": sources,
            "_program": program,
            "_writable": writable_ends(self.fds),
        }

    def _compile(self, plan: _core.SpawnPlan, values: dict[str, Any]) -> None:
        """Add to ``plan`` what a child without options does without."""
        for name in values.keys() & _ITERATED:
            if values[name] is not None and not isinstance(values[name], Keep):
                values[name] = items(values[name], name)
        if not flag(self.close_others, "close_others"):
            plan.close_others = False
        compile_terminal(
            plan,
            self.new_session,
            self.process_group,
            self.controlling_terminal,
            self.foreground,
        )
        compile_resources(
            plan, self.umask, self.rlimits, self.nice, self.cpu_affinity, self.scheduler
        )
        compile_identity(plan, self.user, self.group, self.extra_groups)
        if self.capabilities is not None:
            values["capabilities"] = compile_capabilities(plan, self.capabilities)
        compile_confinement(plan, self.no_new_privs, self.chroot, self.seccomp, self.cgroup)
        compile_namespaces(plan, self.namespaces, self.uid_map, self.gid_map)
        compile_parent_death(plan, self.parent_death_signal, self.parent_death_scope)

    def spawn(self) -> Process:
        """Start the child; return when it has become its program.

        Costs the same whatever the parent's size and threads; the GIL is released.
        Kernel facilities that are missing are replaced (clone3 by clone, close_range by
        /proc/self/fd, CLONE_INTO_CGROUP by cgroup.procs) or named in the error, never
        dropped.

        Returns:
            The child; the caller owns it, its pidfd and its pipes.

        Raises:
            SpawnError: the stage, the subject and errno; nothing is left behind.
        """
        if _forgotten:
            reap_forgotten()
        try:
            pid, pidfd, backend, ends = _core.spawn(self._plan, self._sources.numbers())
        except _core.SysError as error:
            raise from_core(self._program, error) from None
        return Process(self.args, pid, pidfd, cast(Backend, backend), ends, self._writable)

    def __or__(self, other: Command | Pipeline) -> Pipeline:
        """Connect this one's 1 to the other's 0."""
        return Pipeline((self, *(other.commands if isinstance(other, Pipeline) else (other,))))


list_options(Command.__init__, CommandOptions, Command)


def spawn(args: Sequence[StrPath], **options: Unpack[CommandOptions]) -> Process:
    """Start one child: a :class:`Command` that is used once.

    Costs the same whatever the parent's size and threads; the GIL is released.  Kernel
    facilities that are missing are replaced (clone3 by clone, close_range by /proc/self/fd,
    CLONE_INTO_CGROUP by cgroup.procs) or named in the error, never dropped.

    Args:
        args: the program and its arguments.
        options: the options of :class:`Command`, which describes them.

    Returns:
        The child, which has become its program; the caller owns it, its pidfd and its pipes.

    Raises:
        SpawnError: the stage, the subject and errno; nothing is left behind.
        TypeError, ValueError, LookupError: a value makes no sense; nothing was started.
    """
    if not options.keys() <= _KNOWN:
        refuse_unknown("spawn", options, _KNOWN)
    return Command(args, **options).spawn()


list_options(spawn, CommandOptions, Command)
