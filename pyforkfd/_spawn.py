"""A child described by data: Command, compiled once, and spawn, a Command used once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Unpack, cast

from . import _core
from ._checks import PYTHON_IGNORES, PYTHON_IGNORES_BITS, flag, items
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
from ._fds import FdSources, compile_fds
from ._options import CommandOptions, list_options, names, refuse_unknown
from ._pipeline import Pipeline
from ._process import Process, _forgotten, reap_forgotten
from ._program import compile_cwd, compile_program
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
# The parts of a description, and the options that belong to each.
_PROGRAM, _OTHERS, _TERMINAL, _RESOURCES, _IDENTITY, _CONFINEMENT, _NAMESPACES = (
    1 << number for number in range(7)
)
_DEATH, _SIGNALS, _ITERATED = 1 << 7, 1 << 8, 1 << 9
# Options that may be an iterator, which can be read once, but is compiled by each replace().
_ITERATORS = frozenset(
    "cpu_affinity extra_groups namespaces uid_map gid_map "
    "signal_mask default_signals ignore_signals".split()
)
_PARTS = {
    name: part | (_ITERATED if name in _ITERATORS else 0)
    for part, names_of in (
        (_PROGRAM, "executable argv0 env"),
        (_OTHERS, "close_others"),
        (_TERMINAL, "new_session process_group controlling_terminal foreground"),
        (_RESOURCES, "umask rlimits nice cpu_affinity scheduler"),
        (_IDENTITY, "user group extra_groups capabilities"),
        (_CONFINEMENT, "no_new_privs chroot seccomp cgroup"),
        (_NAMESPACES, "namespaces uid_map gid_map"),
        (_DEATH, "parent_death_signal parent_death_scope"),
        (_SIGNALS, "signal_mask default_signals ignore_signals"),
        (0, "cwd fds listen"),  # compiled in any case
    )
    for name in names_of.split()
}


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

    def __init__(self, args: Sequence[StrPath], **options: Unpack[CommandOptions]) -> None:
        if not options.keys() <= _KNOWN:
            refuse_unknown("Command", options, _KNOWN)
        self._describe(args, options)

    def _describe(self, args: Sequence[StrPath], options: CommandOptions) -> None:
        values = self.__dict__  # an option that is not in it has the default of its class
        values.update(options)
        parts = 0
        for name in options:
            parts |= _PARTS[name]
        words = values["args"] = items(args, "args")
        plan = None if parts & _PROGRAM else _core.plain_plan(words, PYTHON_IGNORES_BITS)
        if plan is None:
            plan = _core.SpawnPlan()
            compile_program(plan, words, self.executable, self.argv0, self.env, self.cwd)
            parts |= _SIGNALS
        elif self.cwd is not None:
            compile_cwd(plan, self.cwd)
        values["_plan"] = plan
        values["_sources"] = compile_fds(plan, self.fds, self.listen)
        if parts:
            self._compile(plan, values, parts)

    def _compile(self, plan: _core.SpawnPlan, values: dict[str, Any], parts: int) -> None:
        """Add to ``plan`` what was given: code that is not run is not cold either."""
        if parts & _ITERATED:
            for name in values.keys() & _ITERATORS:
                if values[name] is not None and not isinstance(values[name], Keep):
                    values[name] = items(values[name], name)
        if parts & _OTHERS and not flag(self.close_others, "close_others"):
            plan.close_others = False
        if parts & _TERMINAL:
            compile_terminal(
                plan,
                self.new_session,
                self.process_group,
                self.controlling_terminal,
                self.foreground,
            )
        if parts & _RESOURCES:
            compile_resources(
                plan, self.umask, self.rlimits, self.nice, self.cpu_affinity, self.scheduler
            )
        if parts & _IDENTITY:
            compile_identity(plan, self.user, self.group, self.extra_groups)
            if self.capabilities is not None:
                values["capabilities"] = compile_capabilities(plan, self.capabilities)
        if parts & _CONFINEMENT:
            compile_confinement(plan, self.no_new_privs, self.chroot, self.seccomp, self.cgroup)
        if parts & _NAMESPACES:
            compile_namespaces(plan, self.namespaces, self.uid_map, self.gid_map)
        if parts & _DEATH:
            compile_parent_death(plan, self.parent_death_signal, self.parent_death_scope)
        if parts & _SIGNALS:
            compile_signals(plan, self.signal_mask, self.default_signals, self.ignore_signals)

    @property
    def _program(self) -> str:
        if self._plan.exec_fd is not None:
            return f"descriptor {self._plan.exec_fd}"
        program = self.args[0] if self.executable is None else self.executable
        return os.fsdecode(cast(StrPath, program))

    @property
    def _writable(self) -> frozenset[int]:
        return frozenset(self._sources.writable)

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
        return Process(self.args, pid, pidfd, cast(Backend, backend), ends, self._sources.writable)

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
    command = object.__new__(Command)
    command._describe(args, options)
    return command.spawn()


list_options(spawn, CommandOptions, Command)
