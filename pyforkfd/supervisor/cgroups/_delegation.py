"""The cgroup that we were given: finding it, leaving it as an inner node, its controllers."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ._file import CgroupError, read, write

OWN_LEAF = "supervisor"
"""The leaf that the supervisor moves itself to; systemd's DelegateSubgroup= may do so before."""

_DELEGATE = (
    "let the service manager delegate it (systemd: Delegate=yes in the unit, or "
    "systemd-run --property=Delegate=yes)"
)

_WRITABLE = (
    "the tree is mounted read-only, as containers have it: give the container a cgroup namespace "
    "of its own and mount the tree there for writing"
)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a cgroup that we divide.

    Attributes:
        controllers: those that its children have.
        missing: an error for each controller that was wanted and is not to be had.
    """

    controllers: frozenset[str]
    missing: tuple[CgroupError, ...]


def own_cgroup(pid: int | str = "self") -> Path:
    """The directory of a process's cgroup in the v2 tree, or in the v2 part of a hybrid one.

    Args:
        pid: the process.

    Raises:
        CgroupError: no v2 tree is mounted (ENOENT), or none that shows this cgroup (ENODEV),
            or it was removed.
    """
    proc = Path(f"/proc/{pid}/cgroup")
    ours = next((ln[3:] for ln in read(proc).splitlines() if ln.startswith("0::")), None)
    mounts = _mounts()
    if ours is None or not mounts:
        raise CgroupError(
            errno.ENOENT, "find a cgroup v2 tree in", Path("/proc/self/mountinfo"), _mount_advice()
        )
    for root, point in reversed(mounts):  # a later mount hides an earlier one
        if (below := _below(root, ours)) is not None and (path := point / below).is_dir():
            return path
    raise CgroupError(
        errno.ENODEV,
        f"find the cgroup {ours!r} in what is mounted at",
        mounts[-1][1],
        "mount the tree that has it; a container needs its own cgroup namespace",
    )


def divisible() -> Path:
    """The cgroup that is ours to divide: the one we are in.

    Or its parent, where ours is the leaf ``supervisor`` of one that we may divide: a
    supervisor that was started again, or by systemd with DelegateSubgroup=.

    Raises:
        CgroupError: it is not ours to divide; it says what is not writable.
    """
    ours = own_cgroup()
    if ours.name == OWN_LEAF and not _refusal(ours.parent):
        return ours.parent
    if refusal := _refusal(ours):
        raise refusal
    return ours


def take(path: Path, wanted: Iterable[str], *, also: Iterable[int] = ()) -> Taken:
    """Make a cgroup an inner node: we move to a leaf below, and its children get controllers.

    A cgroup that has processes cannot give controllers to its children (cgroups(7), "no
    internal processes").  Ours to move are this process and its descendants, those named, and
    all where systemd says that the cgroup is delegated, or it is that of a container, with its
    first process.  Doing it again changes nothing.

    Args:
        path: the cgroup.
        wanted: controllers, such as "memory"; those that cannot be had are in ``missing``.
        also: other processes that belong to us, such as a keeper.

    Raises:
        CgroupError: the leaf cannot be made, or nothing be moved there.
    """
    leaf = path / OWN_LEAF
    try:
        leaf.mkdir(exist_ok=True)
    except OSError as error:
        raise CgroupError(error.errno or 0, "make our own leaf", leaf, _DELEGATE) from None
    for pid in _ours(path, also):
        try:
            write(leaf / "cgroup.procs", str(pid))
        except CgroupError as error:
            if error.errno == errno.ESRCH:
                continue  # it has ended
            advice = _DELEGATE
            if error.errno == errno.EOPNOTSUPP:
                advice = f"a supervisor before us has divided {path}: start us in {leaf}"
            what = f"cannot move process {pid} to our own leaf: {error.what}"
            raise CgroupError(error.errno or 0, what, leaf / "cgroup.procs", advice) from None
    return _enable(path, sorted(wanted))


def _enable(path: Path, wanted: Iterable[str]) -> Taken:
    control = path / "cgroup.subtree_control"
    missing = []
    for name in wanted:
        if name in read(control).split():
            continue
        try:
            write(control, f"+{name}")
        except CgroupError as error:
            what = f"cannot have the {name} controller: {error.what}"
            missing.append(CgroupError(error.errno or 0, what, control, _why(error, name)))
    return Taken(frozenset(read(control).split()), tuple(missing))


def _ours(path: Path, also: Iterable[int]) -> list[int]:
    # 0 is one that our pid namespace does not show.
    there = [int(pid) for pid in read(path / "cgroup.procs").split() if pid != "0"]
    if _is_all_ours(path, there):
        return there
    mine = {os.getpid(), *also}
    return [pid for pid in there if pid in mine or _descends(pid)]


def _is_all_ours(path: Path, there: Iterable[int]) -> bool:
    try:
        if os.getxattr(path, "user.delegate") == b"1":
            return True  # set by systemd
    except OSError:
        pass  # nobody said so
    # A container's first process beside us; the root of the whole tree has no type.
    return 1 in there and (path / "cgroup.type").exists()


def _descends(pid: int) -> bool:
    while pid > 1:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False  # it has ended
        # The name, in brackets, may hold anything; the parent is the second field after it.
        pid = int(text.rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def _refusal(path: Path) -> CgroupError | None:
    """Why we may not divide it."""
    what = "the cgroup is not delegated to us: cannot write"
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        try:
            os.close(os.open(path / name, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            advice = _WRITABLE if error.errno == errno.EROFS else _DELEGATE
            return CgroupError(error.errno or 0, what, path / name, advice)
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        return CgroupError(errno.EACCES, what, path, _DELEGATE)
    return None


def _mounts() -> list[tuple[str, Path]]:
    """(root of the mount in the tree, mount point) of each cgroup v2 mount: proc(5)."""
    found = []
    for line in read(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            root, point = (_unescape(field) for field in before.split()[3:5])
            found.append((root, Path(point)))
    return found


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _below(root: str, path: str) -> str | None:
    """The path as seen from the root, None if it is not below."""
    if ".." in path.split("/") or path.endswith(" (deleted)"):
        return None
    if root == "/":
        return path.lstrip("/")
    if path == root or path.startswith(root + "/"):
        return path[len(root) :].lstrip("/")
    return None


def _v1_controllers() -> dict[str, str]:
    """Controller -> where its v1 hierarchy is mounted."""
    found = {}
    for line in read(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ")[:3]
        if kind == "cgroup":
            for option in options.split(","):
                found[option] = _unescape(before.split()[4])
    return found


def _where(controller: str) -> str:
    if place := _v1_controllers().get(controller):
        return (
            f"it belongs to the cgroup v1 hierarchy at {place}: boot with "
            f"systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1={controller}"
        )
    return (
        f"its parent does not hand it on (systemd: Delegate=yes, or Delegate={controller}), "
        "or the kernel lacks it"
    )


def _mount_advice() -> str:
    if _v1_controllers():
        return "this machine has cgroup v1 alone: boot with systemd.unified_cgroup_hierarchy=1"
    return "mount -t cgroup2 none /sys/fs/cgroup"


def _why(error: CgroupError, controller: str) -> str:
    path = Path(error.filename).parent
    if error.errno == errno.ENOENT:
        return _where(controller)
    if error.errno == errno.EBUSY:
        others = read(path / "cgroup.procs").split()
        named = ", ".join(f"{_name(pid)} ({pid})" for pid in others) or "none any more"
        return f"other processes are in {path}: {named}; start us in one of our own: {_DELEGATE}"
    if error.errno == errno.EINVAL:
        return "the kernel does not hand it on while real-time processes are in the cgroup"
    if error.errno == errno.EOPNOTSUPP:
        return "the cgroup is threaded, where it cannot be had"
    return _DELEGATE


def _name(pid: str) -> str:
    if pid == "0":
        return "of another pid namespace"
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
