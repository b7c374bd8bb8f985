"""User, capabilities and confinement of a component's workers, as options of a spawn."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyforkfd import _core
from pyforkfd._options import WorkerOptions
from pyforkfd._trusted_files import read_file
from pyforkfd._types import Capabilities

from ._spec import Component, Privileges
from ._units import rlimit_number

NETWORK = ("NET_BIND_SERVICE",)
"""Capabilities that workers with listeners have by default."""
CAPABILITIES = {name: number for number, name in enumerate(_core.capability_names())}
"""Name without CAP_ -> number."""
_OF_USER = frozenset({"HOME", "USER", "LOGNAME", "SHELL"})
_NO_SHELLS = frozenset({"nologin", "false", "true"})
_LARGEST_FILTER = 8 * 4096  # BPF_MAXINSNS, of 8 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Capabilities and identity of a process, which it may pass on or take away.

    Attributes:
        permitted: numbers of the permitted capabilities.
        effective: numbers of those that are in force now.
        user: the uid, where real, effective and saved are one; else None.
        group: the gid, likewise.
        groups: the extra groups.
    """

    permitted: frozenset[int]
    effective: frozenset[int]
    user: int | None
    group: int | None
    groups: frozenset[int]

    @classmethod
    def now(cls) -> Holder:
        """Return those of the calling thread."""
        users, groups = set(os.getresuid()), set(os.getresgid())
        status = dict(
            line.split(":\t", 1)
            for line in Path("/proc/thread-self/status").read_text().splitlines()
            if line.startswith("Cap")
        )
        return cls(
            permitted=_numbers(int(status["CapPrm"], 16)),
            effective=_numbers(int(status["CapEff"], 16)),
            user=users.pop() if len(users) == 1 else None,
            group=groups.pop() if len(groups) == 1 else None,
            groups=frozenset(os.getgroups()),
        )

    def may(self, capability: str) -> bool:
        """Whether a capability is in force."""
        return CAPABILITIES[capability] in self.effective


def _numbers(mask: int) -> frozenset[int]:
    return frozenset(number for number in range(64) if mask >> number & 1)


def capability_number(name: str) -> int:
    """Return the number of a capability: 13 of ``"NET_RAW"`` or ``"CAP_NET_RAW"``.

    Raises:
        ValueError: no capability has this name.
    """
    try:
        return CAPABILITIES[name.upper().removeprefix("CAP_")]
    except KeyError:
        raise ValueError(f'there is no capability "{name}"; write one of capabilities(7)') from None


def capabilities_for(component: Component, holder: Holder) -> Capabilities:
    """Return all capability sets of a worker.

    Capabilities that the component names are demanded: the spawn fails where the supervisor
    does not have them.  The default ones are given where the supervisor has them.  Reducing
    the bounding set takes CAP_SETPCAP.  Without that the set stays as it is if no_new_privs
    makes it useless, or if the component names no capabilities and so demands nothing.
    """
    privileges = component.privileges
    if privileges.capabilities is not None:
        allowed = frozenset(map(capability_number, privileges.capabilities))
    elif not component.listen:
        allowed = frozenset()
    else:
        allowed = frozenset(map(capability_number, NETWORK))
        if "user" not in privileges.namespaces:  # who makes one has all of them inside
            allowed &= holder.permitted
    reducible = holder.may("SETPCAP") or "user" in privileges.namespaces
    useless = privileges.no_new_privs or privileges.capabilities is None
    chosen = tuple(sorted(allowed))
    return Capabilities(
        bounding=chosen if reducible or not useless else None,
        permitted=chosen,
        inheritable=chosen,
        ambient=chosen,
    )


def spawn_options(component: Component, holder: Holder | None = None) -> WorkerOptions:
    """Return a component's options, for :class:`pyforkfd.Command` and for Zygote.spawn.

    Args:
        component: a valid component.
        holder: the privileges of the process that spawns; None: the calling process now.

    Returns:
        cwd, umask, nice, cpu_affinity, rlimits, and all privileges; not the options that the
        engine adds (program or function, descriptors, cgroup) and :func:`environment`.

    Raises:
        OSError: the file of the filter cannot be read; the error names the file.
        ValueError: that file is no filter; a name is unknown.
    """
    holder = holder or Holder.now()
    privileges = component.privileges
    options: WorkerOptions = {
        "capabilities": capabilities_for(component, holder),
        "no_new_privs": privileges.no_new_privs,
        "namespaces": privileges.namespaces,
    }
    if not is_already(privileges, holder):
        options["user"] = privileges.user
        options["group"] = privileges.group
        options["extra_groups"] = privileges.extra_groups
    if privileges.seccomp is not None:
        options["seccomp"] = read_filter(privileges.seccomp)
    if privileges.chroot is not None:
        options["chroot"] = privileges.chroot
    for name in ("cwd", "umask", "nice", "cpu_affinity"):
        if (value := getattr(component, name)) is not None:
            options[name] = value
    if component.rlimits:
        options["rlimits"] = {
            rlimit_number(name): both_limits(value) for name, value in component.rlimits.items()
        }
    return options


def environment(component: Component, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker, before the loop adds its own variables.

    Args:
        component: the worker's.
        ours: the supervisor's environment; variables that a service manager set for the
            supervisor alone are left out, and with ``privileges.user`` those of its user.
    """
    mine = {"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"}
    mine |= {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "MAINPID", "FORKFD_WORKER"}
    if (user := component.privileges.user) is not None:
        mine |= _OF_USER
    inherited = {} if component.clear_env else {k: v for k, v in ours.items() if k not in mine}
    return inherited | _user_variables(user) | dict(component.env or {})


def _user_variables(user: str | int | None) -> dict[str, str]:
    """Return HOME, USER, LOGNAME and SHELL of a user, as systemd.exec(5) has them.

    A home directory or a shell that stands for none is left out, and so is everything of a
    user that is not in the database.
    """
    try:
        entry = None if user is None else user_entry(user)
    except LookupError:
        entry = None
    if entry is None:
        return {}
    found = {"USER": entry.pw_name, "LOGNAME": entry.pw_name}
    if entry.pw_dir.startswith("/") and entry.pw_dir.strip("/"):
        found["HOME"] = entry.pw_dir
    if entry.pw_shell.startswith("/") and os.path.basename(entry.pw_shell) not in _NO_SHELLS:
        found["SHELL"] = entry.pw_shell
    return found


def both_limits(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return (soft, hard); one number is both."""
    return value if isinstance(value, tuple) else (value, value)


def read_filter(path: str) -> bytes:
    """Read a seccomp filter from its file.

    Raises:
        OSError: the file cannot be read.
        UntrustedPathError: another user could write or replace it.
        ValueError: the file is not an array of struct sock_filter.
    """
    try:
        program = read_file(path, _LARGEST_FILTER, trusted=True)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        program = b""
    if not program or len(program) % 8:
        raise ValueError(
            f"{path}: not 1 to 4096 instructions of 8 bytes (struct sock_filter, seccomp(2))"
        )
    return program


def is_already(privileges: Privileges, holder: Holder) -> bool:
    """Whether the supervisor has the worker's user and groups, so that nothing changes."""
    user, group, groups = identity(privileges)
    return (
        user in (None, holder.user)
        and group in (None, holder.group)
        and (groups is None or groups | {group} == holder.groups | {group})
    )


def user_of(privileges: Privileges) -> int | None:
    """Return the uid of a worker's processes; None: not known, in a user namespace.

    Raises:
        LookupError, ValueError: as :func:`identity`.
    """
    if "user" in privileges.namespaces:
        return None
    user = identity(privileges)[0]
    return os.geteuid() if user is None else user


def identity(privileges: Privileges) -> tuple[int | None, int | None, frozenset[int] | None]:
    """Return uid, gid and extra groups of a worker; None: the supervisor's.

    Raises:
        LookupError: a user or group is not in its database; the message names it.
        ValueError: a uid is not in the database, and no group is given.
    """
    user, group = privileges.user, privileges.group
    uid: int | None = None
    gid = None if group is None else group_number(group)
    groups = None
    if privileges.extra_groups is not None:
        groups = frozenset(map(group_number, privileges.extra_groups))
    if user is not None:
        entry = user_entry(user)
        uid = entry.pw_uid if entry else int(user)
        if gid is None:
            if entry is None:
                raise ValueError(f"uid {user} is not in the user database; write a group as well")
            gid = entry.pw_gid
        if groups is None:
            groups = frozenset(os.getgrouplist(entry.pw_name, gid) if entry else ())
    return uid, gid, groups


def user_entry(user: str | int) -> pwd.struct_passwd | None:
    """Return an entry of the user database; None for a uid that is not in it.

    Raises:
        LookupError: no user has this name.
    """
    if isinstance(user, str):
        try:
            return pwd.getpwnam(user)
        except KeyError:
            raise LookupError(f'there is no user "{user}"') from None
    try:
        return pwd.getpwuid(user)
    except KeyError:
        return None


def group_number(group: str | int) -> int:
    """Return the gid of a group's name; a number is returned as it is.

    Raises:
        LookupError: no group has this name.
    """
    if not isinstance(group, str):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise LookupError(f'there is no group "{group}"') from None


def find_program(program: str, path: str, root: str, cwd: str) -> str:
    """Return the path at which execvpe(3) would find a program.

    Args:
        program: with a slash a path, without one a name to search along ``path``.
        path: PATH of the child.
        root: root directory of the child.
        cwd: working directory of the child, within the root.

    Raises:
        OSError: the error of the exec; the message has the path that was tried.
    """
    refused: OSError | None = None
    for part in [""] if "/" in program else path.split(":"):
        candidate = os.path.join(root, os.path.join(cwd, part, program).lstrip("/"))
        if not os.path.exists(candidate):
            continue
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
        refused = refused or PermissionError(errno.EACCES, "is not executable", candidate)
    if refused:
        raise refused
    where = os.path.join(cwd, program) if "/" in program else f"PATH={path}"
    raise FileNotFoundError(errno.ENOENT, "there is no such program", where)
