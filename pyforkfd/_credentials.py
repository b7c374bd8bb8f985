"""Names of users, groups and capabilities, resolved in the parent."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable

from . import _core
from ._core import SpawnPlan
from ._types import Capabilities, Keep

_NUMBERS = {name: number for number, name in enumerate(_core.capability_names())}


def compile_identity(
    plan: SpawnPlan,
    user: str | int | None,
    group: str | int | Keep | None,
    extra_groups: Iterable[str | int] | Keep | None,
) -> None:
    """Set uid, gid and groups.

    A user brings the group and the extra groups of its entry in the user database, so
    that none of the parent's stay behind; KEEP leaves them alone.
    """
    if user is not None:
        entry = _user(user)
        plan.uid = entry.pw_uid if entry else _id(user, "user")
        plan.user_name = str(user)
        if group is None:
            if entry is None:
                raise ValueError(f"user {user!r} is not in the user database: say group= as well")
            group = entry.pw_gid
        if extra_groups is None:
            extra_groups = (
                os.getgrouplist(entry.pw_name, _gid(group))
                if entry and group is not Keep.KEEP
                else []
            )
    if group is not None and not isinstance(group, Keep):
        plan.gid = _gid(group)
        plan.group_name = str(group)
    if extra_groups is not None and not isinstance(extra_groups, Keep):
        plan.groups = [_gid(g) for g in extra_groups]


def compile_capabilities(plan: SpawnPlan, wanted: Capabilities) -> None:
    ambient = _mask(wanted.ambient)
    permitted = _mask(wanted.permitted)
    inheritable = _mask(wanted.inheritable)
    if ambient is not None:
        inheritable = (inheritable or 0) | ambient
        permitted = None if permitted is None and not ambient else (permitted or 0) | ambient
    plan.bounding = _mask(wanted.bounding)
    plan.permitted = permitted
    plan.inheritable = inheritable
    plan.ambient = ambient


def _id(value: str | int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise LookupError(f"{what} {value!r} is not in the {what} database")
    if not 0 <= value < 2**32 - 1:
        raise ValueError(f"{what} {value} is not an id")
    return value


def _user(user: str | int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(_id(user, "user"))
    except KeyError:
        return None


def _gid(group: str | int | Keep) -> int:
    if isinstance(group, Keep):
        return os.getgid()
    if not isinstance(group, str):
        return _id(group, "group")
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return _id(group, "group")


def _mask(names: Iterable[str | int] | None) -> int | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"capabilities: a set of names is wanted, not {names!r}")
    mask = 0
    for name in names:
        number = _NUMBERS.get(name.upper().removeprefix("CAP_")) if isinstance(name, str) else name
        if number is None or not 0 <= number < 64:
            raise ValueError(f"capabilities: there is no capability {name!r}")
        mask |= 1 << number
    return mask
