"""The supervisor's cgroup, divided into leafs: its own, and one for each worker, with limits."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from pyforkfd._closing import Closing
from pyforkfd._fd import Fd
from pyforkfd.supervisor.spec._limits import Limits

from ._delegation import OWN_LEAF, divide, divisible, unavailable
from ._file import CgroupError, open_directory, write
from ._leaf import Leaf

Policy: TypeAlias = Literal["require", "prefer", "off"]
"""Whether limits are required, given up with a warning where impossible, or not used."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")
_NO_LIMITS = Limits()


def open_tree(
    policy: Policy,
    limits: Iterable[Limits] = (),
    *,
    also: Iterable[int] = (),
    start: Path | None = None,
) -> tuple[Tree | None, tuple[str, ...]]:
    """Divide our own cgroup: move to a leaf below it, beside which workers get theirs.

    Args:
        policy: "require" raises where a controller that the limits need is missing; "prefer"
            reports it and goes on without; "off" does nothing.
        limits: those of the workers, which decide which controllers are needed.
        also: other processes of ours that are in the cgroup, such as a keeper.
        start: the cgroup to divide, instead of the one that this process is in.

    Returns:
        The tree, which the caller owns, or None; and what is missing, a sentence each.

    Raises:
        CgroupError: the policy is "require", and something is missing.  Its notes have what
            else is.
    """
    if policy == "off":
        return None, ()
    wanted = frozenset[str]().union(*(each.controllers() for each in limits))
    try:
        path = divisible() if start is None else start
        lock = _lock(path)
        try:
            division = divide(path, wanted, also=also)
            if policy == "require" and division.missing:
                for other in division.missing[1:]:
                    division.missing[0].add_note(str(other))
                raise division.missing[0]
        except BaseException:
            lock.close()
            raise
    except CgroupError as error:
        if policy == "require":
            raise
        return None, (f"no cgroups: {error}",)
    tree = Tree(path, division.controllers, lock, required=policy == "require")
    return tree, tuple(map(str, division.missing))


def refusals(limits: Iterable[Limits]) -> list[CgroupError]:
    """Return why :func:`open_tree` would refuse the policy "require"; nothing is changed.

    Args:
        limits: those of the workers, which decide which controllers are needed.
    """
    wanted = frozenset[str]().union(*(each.controllers() for each in limits))
    try:
        path = divisible()
        _lock(path).close()
        return unavailable(path, wanted)
    except CgroupError as error:
        return [error]


class Tree(Closing):
    """A cgroup that is divided into leafs.  Made by :func:`open_tree`.

    Its directory is locked (flock(2)) as long as this object, or a duplicate of its
    descriptor in another process, is open: two supervisors would take each other's leafs for
    leftovers.

    Attributes:
        path: of the directory.
        controllers: names of those that leafs have.
    """

    def __init__(
        self, path: Path, controllers: frozenset[str], lock: Fd, *, required: bool
    ) -> None:
        self.path = path
        self.controllers = controllers
        self._required = required
        self._fd = lock

    def fileno(self) -> int:
        """Return the directory's descriptor, which has the lock; borrowed."""
        return self._fd.fileno()

    def leaf(self, name: str, limits: Limits = _NO_LIMITS) -> Leaf:
        """Make a cgroup for one worker, with its limits set before any process is in it.

        Args:
            name: of the cgroup; a number is appended if that exists.
            limits: where the policy is "prefer", those that cannot be set are left out, and
                are in the leaf's ``missing`` unless their controller is missing as a whole.

        Returns:
            The leaf, which the caller owns, for ``Command(cgroup=)`` or
            ``Zygote.spawn(cgroup=)``.

        Raises:
            ValueError: the name cannot be that of a worker's cgroup.
            CgroupError: the cgroup cannot be made; or a limit cannot be set and the policy is
                "require".  Nothing is left behind.
        """
        _demand_name(name)
        for number in itertools.count():
            path = self.path / (f"{name}.{number}" if number else name)
            try:
                path.mkdir()
            except FileExistsError:
                continue  # a leftover, another leaf of ours, or a file of the kernel
            except OSError as error:
                raise CgroupError(error.errno or 0, "make the cgroup", path) from None
            break
        try:
            leaf = Leaf(path)
        except CgroupError:
            path.rmdir()
            raise
        try:
            leaf.missing = self._set(leaf, limits)
        except BaseException:
            leaf.remove()
            raise
        return leaf

    def leftovers(self) -> list[str]:
        """Return the names of the existing leafs, which a supervisor before us may have made."""
        return sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.is_dir(follow_symlinks=False) and entry.name != OWN_LEAF
        )

    def adopt(self, name: str) -> Leaf:
        """Take over an existing leaf; its limits stay as they are.

        Raises:
            ValueError: the name cannot be that of a worker's cgroup.
            CgroupError: ENOENT, the leaf does not exist.
        """
        _demand_name(name)
        return Leaf(self.path / name)

    def close(self) -> None:
        """Release the lock.  Leafs and their processes stay."""
        self._fd.close()

    def _set(self, leaf: Leaf, limits: Limits) -> tuple[str, ...]:
        missing = []
        for name, value in limits.files().items():
            if not self._required and name.partition(".")[0] not in self.controllers:
                continue  # reported once, when the tree was opened
            try:
                write(leaf.path / name, value, dir_fd=leaf.fileno())
            except CgroupError as error:
                if self._required:
                    raise
                missing.append(str(error))
        return tuple(missing)


def _demand_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name == OWN_LEAF:
        raise ValueError(
            f"{name!r} cannot be a worker's cgroup: use letters, digits and _ . : @ -, "
            f"beginning with neither . : @ nor -, and not {OWN_LEAF!r}, which is the supervisor's"
        )


def _lock(path: Path) -> Fd:
    fd = open_directory(path)
    try:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        fd.close()
        operation = "lock against other supervisors the cgroup"
        advice = "another supervisor divides it; start us in a cgroup of our own"
        raise CgroupError(error.errno or 0, operation, path, advice) from None
    return fd
