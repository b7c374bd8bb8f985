"""Names of users, groups and capabilities, resolved in the parent."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable

from . import _core
from ._checks import integer, items, show
from ._core import SpawnPlan
from ._types import Capabilities, Keep

_NUMBERS = {name: number for number, name in enumerate(_core.capability_names())}
_LARGEST_ID = 2**32 - 2  # the one above means "leave it", setresuid(2)


def compile_identity(
    plan: SpawnPlan,
    user: str | int | None,
    group: str | int | Keep | None,
    extra_groups: Iterable[str | int] | Keep | None,
) -> None:
    """Add uid, gid and groups to ``plan``.

    A user brings the group and the extra groups of its entry in the user database, so
    that none of the parent's stay behind; KEEP leaves them alone.
    """
    if user is not None:
        entry = _user(user)
        plan.uid = entry.pw_uid if entry else _id(user, "user")
        plan.user_name = str(user)
        if group is None:
            if entry is None:
                raise ValueError(
                    f"user: {user!r} is not in the user database: write group= as well"
                )
            group = entry.pw_gid
        if extra_groups is None:
            extra_groups = (
                os.getgrouplist(entry.pw_name, _gid(group, "group"))
                if entry and group is not Keep.KEEP
                else ()
            )
    if group is not None and not isinstance(group, Keep):
        plan.gid = _gid(group, "group")
        plan.group_name = str(group)
    if extra_groups is not None and not isinstance(extra_groups, Keep):
        plan.groups = [_gid(g, "extra_groups") for g in items(extra_groups, "extra_groups")]


def compile_capabilities(plan: SpawnPlan, wanted: Capabilities) -> Capabilities:
    """Add capability sets to ``plan``; an ambient one is permitted and inheritable too.

    Returns:
        The same with sets that can be read again.
    """
    if not isinstance(wanted, Capabilities):
        raise TypeError(
            f"capabilities: {show(wanted)} is no set of them: write "
            "pyforkfd.Capabilities(bounding=..., ambient=...)"
        )
    wanted = Capabilities(
        bounding=_names(wanted.bounding),
        permitted=_names(wanted.permitted),
        inheritable=_names(wanted.inheritable),
        ambient=_names(wanted.ambient),
    )
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
    return wanted


def _id(value: str | int, option: str) -> int:
    return integer(value, option, 0, _LARGEST_ID, "an id")


def _user(user: str | int) -> pwd.struct_passwd | None:
    """Return the entry of a user; None for an id that has none."""
    number = None if isinstance(user, str) else _id(user, "user")
    try:
        return pwd.getpwnam(str(user)) if number is None else pwd.getpwuid(number)
    except KeyError:
        if number is not None:
            return None
    except ValueError as error:  # a null byte, or what is no text of this locale
        raise ValueError(f"user: {user!r}: {error}") from None
    raise LookupError(f"user: {user!r} is not in the user database")


def _gid(group: str | int | Keep, option: str) -> int:
    if isinstance(group, Keep):
        return os.getgid()
    if not isinstance(group, str):
        return _id(group, option)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise LookupError(f"{option}: {group!r} is not in the group database") from None
    except ValueError as error:
        raise ValueError(f"{option}: {group!r}: {error}") from None


def _names(wanted: Iterable[str | int] | None) -> tuple[str | int, ...] | None:
    if isinstance(wanted, str):
        raise TypeError(f"capabilities: a set of names is wanted, not {wanted!r}")
    return None if wanted is None else items(wanted, "capabilities")


def _mask(wanted: Iterable[str | int] | None) -> int | None:
    if wanted is None:
        return None
    mask = 0
    for name in wanted:
        number = _NUMBERS.get(name.upper().removeprefix("CAP_")) if isinstance(name, str) else name
        if number is None:
            raise ValueError(f"capabilities: {name!r} is not a capability")
        mask |= 1 << integer(number, "capabilities", 0, 63, "a capability")
    return mask
