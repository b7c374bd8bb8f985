"""A child described by data: Command, compiled once, and spawn, a Command used once."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, ParamSpec, TypeAlias, cast

from . import _core
from ._credentials import compile_capabilities, compile_identity
from ._errors import from_core
from ._fds import FdSources, compile_fds
from ._pipeline import Pipeline
from ._process import Process, _forgotten, reap_forgotten
from ._types import (
    PATHS,
    PIPE,
    PIPE_TO_CHILD,
    Backend,
    Capabilities,
    FdSource,
    HasFileno,
    Keep,
    Scheduler,
    StrPath,
    as_fd,
)

P = ParamSpec("P")

Namespace: TypeAlias = Literal["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
IdMaps: TypeAlias = Sequence[tuple[int, int, int]]

# CLONE_NEW*, clone(2); "time" needs clone3.
_NAMESPACES = {
    "time": 0x80,
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
# Python ignores these; a fresh program expects neither.
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
_PYTHON_IGNORES_BITS = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
# Their default action is fixed; the kernel refuses to be told so.
_FIXED = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)


@dataclass(frozen=True, slots=True)
class Command:
    """A child, described completely.  Frozen, and safe to spawn from many threads at once.

    Every descriptor is borrowed: it stays the caller's, and must be open at each spawn.
    The order in which the options take effect is that of :data:`STAGES`; all of them run
    in the child between clone and exec without any code of the parent's.

    Args:
        args: the program and its arguments.
        executable: the program, where it is not ``args[0]``: a path, or a descriptor open
            on it (execveat(2); not a ``#!`` script, which its interpreter could not open).
            A name without a slash is looked for along PATH of the child's environment,
            as execvpe(3) does, without its fall-back to /bin/sh.
        argv0: what the child sees as its own name, instead of ``args[0]``.
        env: the whole environment; None is the C environment as it is at the spawn.
        cwd: directory as path or descriptor, entered with the child's credentials.
        fds: child's number -> our descriptor or DEVNULL, PIPE, INHERIT, Open(...), ...
            0, 1 and 2 are ours where it does not name them (CLOSED leaves one out).
        close_others: nothing that ``fds`` does not name is open in the child; False lets
            inheritable descriptors through, as exec does.
        listen: name -> listening socket, given as 3, 4, ... with LISTEN_FDS,
            LISTEN_FDNAMES, LISTEN_PID and (Linux 6.9) LISTEN_PIDFDID: sd_listen_fds(3).
        new_session: setsid(2).
        process_group: setpgid(2); 0 is a group of its own.
        controlling_terminal: path or descriptor; needs new_session.
        foreground: make the child's group the terminal's foreground group: True takes
            the controlling terminal.
        umask: file mode creation mask.
        rlimits: resource -> (soft, hard), ``resource.RLIM_INFINITY`` for none.
        nice: the nice value itself, -20 to 19.
        cpu_affinity: numbers of the processors it may run on.
        scheduler: scheduling policy and priority.
        user: name or uid.  Brings the user's group and extra groups with it.
        group: name or gid; KEEP leaves the group alone.
        extra_groups: names or gids; KEEP leaves them alone.
        capabilities: capability sets.
        no_new_privs: prctl PR_SET_NO_NEW_PRIVS.
        parent_death_signal: sent to the child when the parent dies, prctl(2).
        parent_death_scope: "process" starts the child from one long-lived thread, since
            the kernel watches the *thread* that created it (its CPU affinity, scheduling
            and thread credentials are then those of that thread); "thread" is the calling one.
        chroot: new root directory; the directory is then "/" unless cwd says otherwise.
        namespaces: new namespaces for the child, namespaces(7).
        uid_map: (inside, outside, count) lines, user_namespaces(7).
        gid_map: the same for groups; without CAP_SETGID setgroups(2) is denied inside.
        seccomp: classic BPF program as bytes (array of struct sock_filter), installed
            last: it need allow no more than execve and what the program does.
        cgroup: directory in the cgroup v2 tree, path or descriptor: CLONE_INTO_CGROUP
            (Linux 5.7), else the child enters before anything else.
        signal_mask: exactly these are blocked in the child; None: as in the calling thread.
        default_signals: reset to default; handlers always are.
        ignore_signals: ignored in the child.

    Raises:
        TypeError, ValueError, LookupError: a value makes no sense; nothing was started.
    """

    args: Sequence[StrPath]
    executable: StrPath | int | HasFileno | None = field(default=None, kw_only=True)
    argv0: StrPath | None = field(default=None, kw_only=True)
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = field(default=None, kw_only=True)
    cwd: StrPath | int | HasFileno | None = field(default=None, kw_only=True)
    fds: Mapping[int, FdSource] | None = field(default=None, kw_only=True)
    close_others: bool = field(default=True, kw_only=True)
    listen: Mapping[str, int | HasFileno] | None = field(default=None, kw_only=True)
    new_session: bool = field(default=False, kw_only=True)
    process_group: int | None = field(default=None, kw_only=True)
    controlling_terminal: StrPath | int | HasFileno | None = field(default=None, kw_only=True)
    foreground: bool | int | HasFileno = field(default=False, kw_only=True)
    umask: int | None = field(default=None, kw_only=True)
    rlimits: Mapping[int, tuple[int, int]] | None = field(default=None, kw_only=True)
    nice: int | None = field(default=None, kw_only=True)
    cpu_affinity: Iterable[int] | None = field(default=None, kw_only=True)
    scheduler: Scheduler | None = field(default=None, kw_only=True)
    user: str | int | None = field(default=None, kw_only=True)
    group: str | int | Keep | None = field(default=None, kw_only=True)
    extra_groups: Iterable[str | int] | Keep | None = field(default=None, kw_only=True)
    capabilities: Capabilities | None = field(default=None, kw_only=True)
    no_new_privs: bool = field(default=False, kw_only=True)
    parent_death_signal: int | None = field(default=None, kw_only=True)
    parent_death_scope: Literal["process", "thread"] = field(default="process", kw_only=True)
    chroot: StrPath | None = field(default=None, kw_only=True)
    namespaces: Iterable[Namespace] = field(default=(), kw_only=True)
    uid_map: IdMaps = field(default=(), kw_only=True)
    gid_map: IdMaps = field(default=(), kw_only=True)
    seccomp: bytes | None = field(default=None, kw_only=True)
    cgroup: StrPath | int | HasFileno | None = field(default=None, kw_only=True)
    signal_mask: Iterable[int] | None = field(default=None, kw_only=True)
    default_signals: Iterable[int] = field(default=_PYTHON_IGNORES, kw_only=True)
    ignore_signals: Iterable[int] = field(default=(), kw_only=True)
    _plan: _core.SpawnPlan = field(init=False, repr=False, compare=False)
    _sources: FdSources = field(init=False, repr=False, compare=False)
    _program: str = field(init=False, repr=False, compare=False)
    _writable: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plan = _core.SpawnPlan()
        program = _compile_program(plan, self)
        sources = compile_fds(plan, self.fds, self.listen)
        # The plan has our defaults: what nobody asked for is not even touched, since cold
        # code is most of what describing a child costs.
        if not self.close_others:
            plan.close_others = False
        _compile_terminal(plan, self)
        _compile_resources(plan, self)
        _compile_confinement(plan, self)
        _compile_signals(plan, self)
        put = functools.partial(object.__setattr__, self)
        put("args", tuple(self.args))  # a list could change after it was compiled
        put("_plan", plan)
        put("_program", program)
        put("_sources", sources)
        put("_writable", _written_by_us(self.fds))

    def spawn(self) -> Process:
        """Start the child; returns when it has become its program.

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
        """What this one writes to its 1, the other reads from its 0."""
        return Pipeline((self, *(other.commands if isinstance(other, Pipeline) else (other,))))


def _once(command: Callable[P, Command]) -> Callable[P, Process]:
    @functools.wraps(command, updated=())
    def spawn(*args: P.args, **kwargs: P.kwargs) -> Process:
        return command(*args, **kwargs).spawn()

    spawn.__name__ = spawn.__qualname__ = "spawn"
    spawn.__doc__ = "Start one child; takes what :class:`Command` takes.\n\n" + str(
        Command.spawn.__doc__
    )
    return spawn


spawn = _once(Command)


def _bytes(value: StrPath, what: str) -> bytes:
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise ValueError(f"{what}: null byte in {encoded!r}")
    return encoded


def _compile_program(plan: _core.SpawnPlan, c: Command) -> str:
    """What is executed, where and as what; returns the program's name for messages."""
    if isinstance(c.args, PATHS):
        raise TypeError(f"args: a sequence is wanted, not {c.args!r}: try [{c.args!r}]")
    argv = [_bytes(arg, "args") for arg in c.args]
    if not argv:
        raise ValueError("args: empty; the program's name is wanted at least")
    if c.env is not None:
        plan.env = _environment(c.env)
    program: bytes
    if isinstance(c.executable, PATHS) or c.executable is None:
        program = argv[0] if c.executable is None else _bytes(c.executable, "executable")
        if not program:
            raise ValueError("executable: the program's name is empty")
        plan.candidates = _candidates(program, c.env)
    else:
        plan.exec_fd = as_fd(c.executable, "executable")
        program = b"descriptor %d" % plan.exec_fd
    if c.argv0 is not None:
        argv[0] = _bytes(c.argv0, "argv0")
    plan.argv = argv
    plan.program = program
    if isinstance(c.cwd, PATHS):
        plan.cwd = _path(c.cwd, "cwd")
    elif c.cwd is not None:
        plan.cwd_fd = as_fd(c.cwd, "cwd")
    return os.fsdecode(program)


def _path(value: StrPath, what: str) -> bytes:
    path = _bytes(value, what)
    if not path:
        raise ValueError(f"{what}: the path is empty")
    return path


def _environment(env: Mapping[str, str] | Mapping[bytes, bytes]) -> list[bytes]:
    entries = []
    for name, value in env.items():
        key = _bytes(name, "env")
        if not key or b"=" in key:
            raise ValueError(f"env: {name!r} cannot be the name of a variable")
        entries.append(key + b"=" + _bytes(value, f"env: {name!r}"))
    return entries


def _candidates(
    program: bytes, env: Mapping[str, str] | Mapping[bytes, bytes] | None
) -> list[bytes]:
    if b"/" in program:
        return [program]
    variables = cast(Mapping[object, StrPath], os.environ if env is None else env)
    path = variables.get("PATH")
    if path is None:
        path = variables.get(b"PATH", os.defpath) if env is not None else os.defpath
    # An empty element is the current directory, execvp(3).
    return [os.path.join(part, program) for part in os.fsencode(path).split(b":")]


def _written_by_us(fds: Mapping[int, FdSource] | None) -> frozenset[int]:
    if not fds:
        return frozenset()
    return frozenset(t for t, s in fds.items() if s is PIPE_TO_CHILD or (s is PIPE and t == 0))


def _compile_terminal(plan: _core.SpawnPlan, c: Command) -> None:
    if c.new_session:
        plan.new_session = True
    if c.process_group is not None:
        if c.process_group < 0:
            raise ValueError(f"process_group: {c.process_group} is negative")
        if c.new_session:
            raise ValueError("process_group: a new session has a group of its own")
        plan.process_group = c.process_group
    terminal = c.controlling_terminal
    if terminal is not None:
        if not c.new_session:
            raise ValueError("controlling_terminal: needs new_session=True, tty_ioctl(4)")
        if isinstance(terminal, PATHS):
            plan.controlling_terminal_path = _path(terminal, "controlling_terminal")
        else:
            plan.controlling_terminal = as_fd(terminal, "controlling_terminal")
    if c.foreground is True:
        if plan.controlling_terminal is not None:
            plan.foreground_terminal = plan.controlling_terminal
        else:
            plan.foreground_terminal_path = _path(
                cast(StrPath, terminal or "/dev/tty"), "foreground"
            )
    elif c.foreground is not False:
        plan.foreground_terminal = as_fd(c.foreground, "foreground")


def _compile_resources(plan: _core.SpawnPlan, c: Command) -> None:
    if c.umask is not None:
        if not 0 <= c.umask <= 0o777:
            raise ValueError(f"umask: {c.umask:#o} is not within 0o777")
        plan.umask = c.umask
    if c.rlimits:
        for resource, (soft, hard) in c.rlimits.items():
            # RLIM_INFINITY is -1 in Python and all ones in the kernel.
            plan.add_limit(resource, soft & (2**64 - 1), hard & (2**64 - 1))
    if c.nice is not None:
        if not -20 <= c.nice <= 19:
            raise ValueError(f"nice: {c.nice} is not within -20 to 19")
        plan.nice = c.nice
    if c.cpu_affinity is not None:
        mask = 0
        for cpu in c.cpu_affinity:
            if not 0 <= cpu < 8192:
                raise ValueError(f"cpu_affinity: {cpu} is not a processor")
            mask |= 1 << cpu
        if mask == 0:
            raise ValueError("cpu_affinity: no processor named")
        words = -(-mask.bit_length() // 64)
        plan.affinity = mask.to_bytes(words * 8, sys.byteorder)
    if c.scheduler is not None:
        plan.scheduler_policy = c.scheduler.policy
        plan.scheduler_priority = c.scheduler.priority


def _compile_confinement(plan: _core.SpawnPlan, c: Command) -> None:
    compile_identity(plan, c.user, c.group, c.extra_groups)
    if c.capabilities is not None:
        compile_capabilities(plan, c.capabilities)
    if c.no_new_privs:
        plan.no_new_privs = True
    if c.chroot is not None:
        plan.chroot = _path(c.chroot, "chroot")
    flags = 0
    for name in c.namespaces:
        if name not in _NAMESPACES:
            raise ValueError(f"namespaces: {name!r} is none of {', '.join(sorted(_NAMESPACES))}")
        flags |= _NAMESPACES[name]
    if flags:
        plan.namespaces = flags
    if (c.uid_map or c.gid_map) and not flags & _NAMESPACES["user"]:
        raise ValueError("uid_map, gid_map: need the user namespace")
    for line in c.uid_map:
        plan.add_uid_map(*line)
    for line in c.gid_map:
        plan.add_gid_map(*line)
    if c.seccomp is not None:
        if not c.seccomp or len(c.seccomp) % 8 or len(c.seccomp) > 8 * 4096:
            raise ValueError(
                f"seccomp: {len(c.seccomp)} bytes are not 1 to 4096 instructions of 8 bytes"
            )
        plan.seccomp = c.seccomp
    if c.cgroup is not None:
        if isinstance(c.cgroup, PATHS):
            plan.cgroup_path = _path(c.cgroup, "cgroup")
        else:
            plan.cgroup_fd = as_fd(c.cgroup, "cgroup")


def _signal_bits(signals: Iterable[int], what: str) -> int:
    if signals is _PYTHON_IGNORES:
        return _PYTHON_IGNORES_BITS
    bits = 0
    for sig in signals:
        if not 1 <= sig <= 64:
            raise ValueError(f"{what}: {sig} is not a signal")
        bits |= 1 << (sig - 1)
    return bits


def _compile_signals(plan: _core.SpawnPlan, c: Command) -> None:
    if c.signal_mask is not None:
        plan.signal_mask = _signal_bits(c.signal_mask, "signal_mask")
    ignored = _signal_bits(c.ignore_signals, "ignore_signals")
    if ignored & _FIXED:
        raise ValueError("ignore_signals: SIGKILL and SIGSTOP cannot be ignored")
    if ignored:
        plan.ignore_signals = ignored
    default = _signal_bits(c.default_signals, "default_signals")
    plan.default_signals = default & ~_FIXED & ~ignored
    if c.parent_death_signal is not None:
        _signal_bits([c.parent_death_signal], "parent_death_signal")
        plan.death_signal = c.parent_death_signal
    if c.parent_death_scope == "thread":
        plan.death_with_process = False
    elif c.parent_death_scope != "process":
        raise ValueError(f"parent_death_scope: {c.parent_death_scope!r}")
