"""From the options of a child to the core's plan: terminal, resources, confinement, signals.

The plan has our defaults, and an option that was not given is not even touched: cold code is
most of the cost of describing a child.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import cast

from ._checks import (
    MAX_INT,
    UNCHANGEABLE,
    as_fd,
    choice,
    flag,
    integer,
    items,
    pairs,
    path,
    path_or_fd,
    show,
    signal_bits,
    signum,
)
from ._core import SpawnPlan
from ._types import NAMESPACES, HasFileno, IdMaps, Namespace, Scheduler, StrPath

_RLIM_MAX = 2**64 - 1  # RLIM_INFINITY, which is -1 in Python
_MAX_CPUS = 8192
_MAX_FILTER = 8 * 4096  # BPF_MAXINSNS of 8 bytes each
_NO_USER_NAMESPACE = "needs the user namespace: write namespaces=['user', ...]"


def compile_terminal(
    plan: SpawnPlan,
    new_session: bool,
    process_group: int | None,
    controlling_terminal: StrPath | int | HasFileno | None,
    foreground: bool | int | HasFileno,
) -> None:
    """Add session, process group and terminal to ``plan``."""
    if flag(new_session, "new_session"):
        plan.new_session = True
    if process_group is not None:
        group = integer(process_group, "process_group", 0, MAX_INT, "a process group")
        if new_session:
            raise ValueError("process_group: a new session has a group of its own")
        plan.process_group = group
    terminal: bytes | int = b"/dev/tty"
    if controlling_terminal is not None:
        terminal = path_or_fd(controlling_terminal, "controlling_terminal")
        if not new_session:
            raise ValueError("controlling_terminal: needs new_session=True, tty_ioctl(4)")
        if isinstance(terminal, bytes):
            plan.controlling_terminal_path = terminal
        else:
            plan.controlling_terminal = terminal
    if foreground is False:
        return
    if foreground is not True:
        terminal = as_fd(foreground, "foreground", otherwise=" nor True or False")
    if isinstance(terminal, bytes):
        plan.foreground_terminal_path = terminal
    else:
        plan.foreground_terminal = terminal


def compile_resources(
    plan: SpawnPlan,
    umask: int | None,
    rlimits: Mapping[int, tuple[int, int]] | None,
    nice: int | None,
    cpu_affinity: Iterable[int] | None,
    scheduler: Scheduler | None,
) -> None:
    """Add umask, limits, priority, processors and scheduling policy to ``plan``."""
    if umask is not None:
        plan.umask = integer(umask, "umask", 0, 0o777, "within 0o777", oct)
    if rlimits is not None:
        for resource, limits in pairs(rlimits, "rlimits"):
            _add_limit(plan, resource, limits)
    if nice is not None:
        plan.nice = integer(nice, "nice", -20, 19, "within -20 to 19")
    if cpu_affinity is not None:
        mask = 0
        for cpu in items(cpu_affinity, "cpu_affinity"):
            mask |= 1 << integer(cpu, "cpu_affinity", 0, _MAX_CPUS - 1, "a processor")
        if mask == 0:
            raise ValueError("cpu_affinity: no processor named")
        words = -(-mask.bit_length() // 64)
        plan.affinity = mask.to_bytes(words * 8, sys.byteorder)
    if scheduler is not None:
        if not isinstance(scheduler, Scheduler):
            raise TypeError(
                f"scheduler: {show(scheduler)} is no policy: write pyforkfd.Scheduler(policy)"
            )
        low = -MAX_INT - 1
        plan.scheduler_policy = integer(scheduler.policy, "scheduler", low, MAX_INT, "a policy")
        plan.scheduler_priority = integer(
            scheduler.priority, "scheduler", low, MAX_INT, "a priority"
        )


def _add_limit(plan: SpawnPlan, resource: object, limits: object) -> None:
    number = integer(resource, "rlimits", 0, MAX_INT, "a resource (resource.RLIMIT_...)")
    name = f"rlimits: {number}"
    both = items(limits, name) if not isinstance(limits, int) else ()
    if len(both) != 2:
        raise TypeError(f"{name}: {show(limits)} is not a pair: write (soft, hard)")
    soft, hard = (integer(limit, name, -1, _RLIM_MAX, "a limit") & _RLIM_MAX for limit in both)
    plan.add_limit(number, soft, hard)


def compile_confinement(
    plan: SpawnPlan,
    no_new_privs: bool,
    chroot: StrPath | None,
    seccomp: bytes | None,
    cgroup: StrPath | int | HasFileno | None,
) -> None:
    """Add no_new_privs, root directory, filter and cgroup to ``plan``."""
    if flag(no_new_privs, "no_new_privs"):
        plan.no_new_privs = True
    if chroot is not None:
        plan.chroot = path(chroot, "chroot")
    if seccomp is not None:
        if not isinstance(seccomp, (bytes, bytearray, memoryview)):
            raise TypeError(f"seccomp: {show(seccomp)} is not bytes")
        program = bytes(seccomp)
        if not program or len(program) % 8 or len(program) > _MAX_FILTER:
            raise ValueError(
                f"seccomp: {len(program)} bytes are not 1 to 4096 instructions of 8 bytes"
            )
        plan.seccomp = program
    if cgroup is not None:
        where = path_or_fd(cgroup, "cgroup")
        if isinstance(where, bytes):
            plan.cgroup_path = where
        else:
            plan.cgroup_fd = where


def compile_namespaces(
    plan: SpawnPlan, namespaces: Iterable[Namespace], uid_map: IdMaps, gid_map: IdMaps
) -> None:
    """Add new namespaces and the maps of a user namespace to ``plan``."""
    flags = 0
    for name in items(namespaces, "namespaces"):
        flags |= NAMESPACES[cast(Namespace, choice(name, "namespaces", NAMESPACES))]
    if flags:
        plan.namespaces = flags
    for option, lines, add in (
        ("uid_map", uid_map, plan.add_uid_map),
        ("gid_map", gid_map, plan.add_gid_map),
    ):
        for line in items(lines, option):
            if not flags & NAMESPACES["user"]:
                raise ValueError(f"{option}: {_NO_USER_NAMESPACE}")
            numbers = items(line, option)
            if len(numbers) != 3:
                raise ValueError(f"{option}: {show(line)} is not (inside, outside, count)")
            add(*(integer(number, option, 0, 2**32 - 1, "an id") for number in numbers))


def compile_signals(
    plan: SpawnPlan,
    signal_mask: Iterable[int] | None,
    default_signals: Iterable[int],
    ignore_signals: Iterable[int],
) -> None:
    """Add mask and actions of signals to ``plan``."""
    if signal_mask is not None:
        plan.signal_mask = signal_bits(signal_mask, "signal_mask")
    ignored = signal_bits(ignore_signals, "ignore_signals")
    if ignored & UNCHANGEABLE:
        raise ValueError("ignore_signals: SIGKILL and SIGSTOP cannot be ignored")
    if ignored:
        plan.ignore_signals = ignored
    default = signal_bits(default_signals, "default_signals")
    plan.default_signals = default & ~UNCHANGEABLE & ~ignored


def compile_parent_death(plan: SpawnPlan, number: int | None, scope: str) -> None:
    """Add the parent-death signal and its scope to ``plan``."""
    if number is not None:
        plan.death_signal = signum(number, "parent_death_signal")
    if choice(scope, "parent_death_scope", ("process", "thread")) == "thread":
        plan.death_with_process = False
