"""Trust in the owners of paths: users, groups, and the error that names others."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from pathlib import Path

# Groups whose members are root's equals, or write the system's logs, on the distributions.
_ADMINISTRATORS = ("root", "wheel", "sudo", "admin", "staff", "syslog")
# CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, SETGID, SETUID: capability.h
_STRONG = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7


class UntrustedPathError(PermissionError):
    """A path that another user could have prepared; the text names the user and a remedy."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def is_privileged() -> bool:
    """Return whether this process may do more than its files' owner: root, or by capabilities."""
    if os.geteuid() == 0:
        return True
    status = Path("/proc/thread-self/status").read_text()
    (effective,) = (line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) & _STRONG)


def user_name(uid: int) -> str:
    """Return a user's name for messages."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


def is_trusted(uid: int) -> bool:
    """Return whether a file's owner is root or this user, or nobody who could act here."""
    return uid in (0, os.geteuid()) or uid == _unmapped_uid()


@functools.cache
def _unmapped_uid() -> int | None:
    """Return the uid of files whose owner has no number in our user namespace, if it is free."""
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= overflow < first + count:
            return None
    return overflow


def _trusted_gids() -> frozenset[int]:
    trusted = {0}
    for name in _ADMINISTRATORS:
        try:
            trusted.add(grp.getgrnam(name).gr_gid)
        except KeyError:
            continue
    return frozenset(trusted if is_privileged() else {*trusted, os.getegid(), *os.getgroups()})


def other_writers(fd: int, info: os.stat_result) -> str:
    """Return who may write to a file besides its owner; empty: nobody.

    Args:
        fd: of the file; O_PATH is enough.
        info: fstat(2) of it.
    """
    if info.st_mode & stat.S_IWOTH:
        return "everybody"
    if not info.st_mode & stat.S_IWGRP:
        return ""
    if info.st_gid not in _trusted_gids():
        try:
            return f"group {grp.getgrgid(info.st_gid).gr_name}"
        except KeyError:
            return f"group {info.st_gid}"
    try:  # the bits of the group are then a mask, acl(5)
        os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
    except OSError:
        return ""
    return "each user whom its ACL names"
