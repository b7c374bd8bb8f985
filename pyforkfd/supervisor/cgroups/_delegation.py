"""The delegated cgroup: finding it, making it an inner node, enabling its controllers."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ._file import CgroupError, read, write

OWN_LEAF = "supervisor"
"""The leaf to which the supervisor moves itself, as systemd's DelegateSubgroup= may have done."""

_DELEGATE = (
    "let the service manager delegate it (systemd: Delegate=yes in the unit, or "
    "systemd-run --property=Delegate=yes)"
)

_WRITABLE = (
    "the tree is mounted read-only, as containers have it: give the container a cgroup namespace "
    "of its own and mount the tree there for writing"
)


@dataclass(frozen=True, slots=True)
class Division:
    """The result of dividing a cgroup.

    Attributes:
        controllers: names of those that the children have.
        missing: an error for each wanted controller that could not be enabled.
    """

    controllers: frozenset[str]
    missing: tuple[CgroupError, ...]


def own_cgroup(pid: int | str = "self") -> Path:
    """Return the directory of a process's cgroup in the v2 tree, or its part of a hybrid one.

    Args:
        pid: the process.

    Raises:
        CgroupError: no v2 tree is mounted (ENOENT), or none that shows this cgroup (ENODEV),
            or the cgroup was removed.
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
        "mount the tree that has this cgroup; a container needs its own cgroup namespace",
    )


def divisible() -> Path:
    """Return the cgroup to divide: the one that this process is in.

    Its parent, where the cgroup is the leaf ``supervisor`` of one that we may divide: that of
    a supervisor that was started again, or by systemd with DelegateSubgroup=.

    Raises:
        CgroupError: the cgroup is not delegated to us; the error names what is not writable.
    """
    ours = own_cgroup()
    if ours.name == OWN_LEAF and not _refusal(ours.parent):
        return ours.parent
    if refusal := _refusal(ours):
        raise refusal
    return ours


def divide(path: Path, wanted: Iterable[str], *, also: Iterable[int] = ()) -> Division:
    """Make a cgroup an inner node: move its processes to a leaf, enable controllers below.

    A cgroup that has processes cannot give controllers to its children (cgroups(7), "no
    internal processes").  Moved are this process and its descendants and those in ``also``;
    all processes, where systemd has marked the cgroup as delegated, or where it is that of a
    container, with the container's first process.  A second call changes nothing.

    Args:
        path: the cgroup.
        wanted: controllers, such as "memory"; those that cannot be enabled are in ``missing``.
        also: other processes that belong to us, such as a keeper.

    Raises:
        CgroupError: the leaf cannot be made, or a process cannot be moved there.
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
                continue  # the process has ended
            advice = _DELEGATE
            if error.errno == errno.EOPNOTSUPP:
                advice = f"a supervisor before us has divided {path}: start us in {leaf}"
            operation = f"cannot move process {pid} to our own leaf: {error.operation}"
            raise CgroupError(error.errno or 0, operation, leaf / "cgroup.procs", advice) from None
    return _enable(path, sorted(wanted))


def unavailable(path: Path, wanted: Iterable[str]) -> list[CgroupError]:
    """Return an error for each controller that a cgroup has not, and so cannot give."""
    there = read(path / "cgroup.controllers").split()
    control = path / "cgroup.subtree_control"
    return [
        CgroupError(
            errno.ENOENT,
            f"cannot have the {name} controller: write '+{name}' to",
            control,
            _missing_advice(name),
        )
        for name in sorted(wanted)
        if name not in there
    ]


def _enable(path: Path, wanted: Iterable[str]) -> Division:
    control = path / "cgroup.subtree_control"
    missing = []
    for name in wanted:
        if name in read(control).split():
            continue
        try:
            write(control, f"+{name}")
        except CgroupError as error:
            operation = f"cannot have the {name} controller: {error.operation}"
            advice = _controller_advice(error, name)
            missing.append(CgroupError(error.errno or 0, operation, control, advice))
    return Division(frozenset(read(control).split()), tuple(missing))


def _ours(path: Path, also: Iterable[int]) -> list[int]:
    # 0 is one that our pid namespace does not show.
    pids = [int(pid) for pid in read(path / "cgroup.procs").split() if pid != "0"]
    if _is_all_ours(path, pids):
        return pids
    ours = {os.getpid(), *also}
    return [pid for pid in pids if pid in ours or _is_descendant(pid)]


def _is_all_ours(path: Path, pids: Iterable[int]) -> bool:
    try:
        if os.getxattr(path, "user.delegate") == b"1":
            return True  # set by systemd
    except OSError:
        pass  # not marked
    # A container's first process beside us; the root of the whole tree has no type.
    return 1 in pids and (path / "cgroup.type").exists()


def _is_descendant(pid: int) -> bool:
    while pid > 1:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False  # the process has ended
        # The name, in brackets, may have any character; the parent is the second field after it.
        pid = int(text.rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def _refusal(path: Path) -> CgroupError | None:
    """Return the error if we may not divide the cgroup, else None."""
    operation = "the cgroup is not delegated to us: cannot write"
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        try:
            os.close(os.open(path / name, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            advice = _WRITABLE if error.errno == errno.EROFS else _DELEGATE
            return CgroupError(error.errno or 0, operation, path / name, advice)
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        return CgroupError(errno.EACCES, operation, path, _DELEGATE)
    return None


def _mountinfo() -> Iterator[tuple[str, str, str, str]]:
    """Return root, mount point, file system type and options of each mount: proc(5)."""
    for line in read(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_unescape(field) for field in before.split()[3:5])
        kind, _, options = after.split(" ")[:3]
        yield root, point, kind, options


def _mounts() -> list[tuple[str, Path]]:
    """Return root and mount point of each cgroup v2 mount."""
    return [(root, Path(point)) for root, point, kind, _ in _mountinfo() if kind == "cgroup2"]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _below(root: str, path: str) -> str | None:
    """Return the path relative to the root, None if it is not below."""
    if ".." in path.split("/") or path.endswith(" (deleted)"):
        return None
    if root == "/":
        return path.lstrip("/")
    if path == root or path.startswith(root + "/"):
        return path[len(root) :].lstrip("/")
    return None


def _v1_controllers() -> dict[str, str]:
    """Return the mount points of the v1 hierarchies, by controller."""
    return {
        option: point
        for _, point, kind, options in _mountinfo()
        if kind == "cgroup"
        for option in options.split(",")
    }


def _missing_advice(controller: str) -> str:
    if point := _v1_controllers().get(controller):
        return (
            f"the controller belongs to the cgroup v1 hierarchy at {point}: boot with "
            f"systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1={controller}"
        )
    return (
        "the parent cgroup does not enable the controller (systemd: Delegate=yes, or "
        f"Delegate={controller}), or the kernel does not have it"
    )


def _mount_advice() -> str:
    if _v1_controllers():
        return "this machine has cgroup v1 alone: boot with systemd.unified_cgroup_hierarchy=1"
    return "mount -t cgroup2 none /sys/fs/cgroup"


def _controller_advice(error: CgroupError, controller: str) -> str:
    path = Path(error.filename).parent
    if error.errno == errno.ENOENT:
        return _missing_advice(controller)
    if error.errno == errno.EBUSY:
        others = read(path / "cgroup.procs").split()
        names = ", ".join(f"{_name(pid)} ({pid})" for pid in others) or "none any more"
        return f"other processes are in {path}: {names}; start us in one of our own: {_DELEGATE}"
    if error.errno == errno.EINVAL:
        return "the kernel does not enable it while real-time processes are in the cgroup"
    if error.errno == errno.EOPNOTSUPP:
        return "the cgroup is threaded, and the controller is not available in such a one"
    return _DELEGATE


def _name(pid: str) -> str:
    if pid == "0":
        return "of another pid namespace"
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
