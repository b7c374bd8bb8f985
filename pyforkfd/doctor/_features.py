"""Which facilities of the kernel there are here, each by trying it, and what we do without."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyforkfd import _core
from pyforkfd._errors import SpawnError
from pyforkfd._fd import Fd
from pyforkfd._spawn import spawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A facility of the kernel.

    Attributes:
        name: as manual pages have it.
        since: the Linux it came with, for people: it is never asked by version.
        present: it works here.
        errno: what the kernel, or a filter in front of it, answered; None if it was no errno.
        seen: what was found, in words.
        used_for: what it is good for.
        without: what is done where it is missing.
    """

    name: str
    since: str
    present: bool
    errno: int | None
    seen: str
    used_for: str
    without: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting of the system that bears on starting processes and passing descriptors.

    Attributes:
        name: as sysctl(8) or getrlimit(2) has it.
        value: what it is; ``not there`` where this kernel has none.
        meaning: what follows.
    """

    name: str
    value: str
    meaning: str


# In the core: its name, the manual's, the Linux it came with, its use, and what is done without.
_CORE = """
clone3|clone3(2)|5.3|starting a child|clone(2)
clone_clear_sighand|CLONE_CLEAR_SIGHAND|5.5|resetting handlers|the child resets them one by one
clone_into_cgroup|CLONE_INTO_CGROUP|5.7|cgroup=|the child writes itself into cgroup.procs
clone_pidfd|CLONE_PIDFD|5.2|the pidfd of a child|pidfd_open(2), before anybody can reap it
shared_memory|memory shared by CLONE_VM||starting at flat cost|page tables are copied (fork-like)
pidfd_open|pidfd_open(2)|5.3|the pidfd of any process|none: a process is known by it
pidfd_send_signal|pidfd_send_signal(2)|5.1|signals|none: pids may be used again
waitid_pidfd|waitid(P_PIDFD)|5.4|exit status and usage|none: pids may be used again
pidfs|pidfs: inodes of pidfds|6.9|LISTEN_PIDFDID|the variable is not set
pidfd_exit_information|PIDFD_INFO_EXIT|6.15|the status that another reaped|ExitStatus.lost
pidfd_getfd|pidfd_getfd(2)|5.6|sockets of other processes|sock_diag(7) alone
close_range|close_range(2)|5.9|closing at flat cost|/proc/self/fd is listed, closed one by one
close_range_cloexec|CLOSE_RANGE_CLOEXEC|5.11|marking many at once|they are marked one by one
close_range_unshare|CLOSE_RANGE_UNSHARE|5.9|a start without a copied table|it is copied, then closed
f_dupfd_query|fcntl(F_DUPFD_QUERY)|6.10|same_open_file|kcmp(2)
kcmp|kcmp(2)|3.5|which descriptors are one open file|inodes, where they can tell
execveat|execveat(2)|3.19|executable= by descriptor|an error at stage exec
seccomp|seccomp(2) filters|3.5|seccomp=|an error at stage seccomp: never dropped
bpf|bpf(2)|3.18|watching execs and exits in the kernel|nothing of ours needs it
"""


def features() -> tuple[Feature, ...]:
    """What this kernel, or the sandbox in front of it, lets us use.

    Each is tried, with no lasting effect: a few children are started that do nothing, and a
    cgroup is made and removed.  Safe to call from any thread.
    """
    folder = _own_cgroup()
    cgroup = None if folder is None else Fd(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    try:
        found = _core.probe_features(-1 if cgroup is None else cgroup.fileno())
    finally:
        if cgroup is not None:
            cgroup.close()
    rows = []
    for line in _CORE.strip().splitlines():
        key, name, since, use, without = line.split("|")
        err = found.get(key)
        seen = "no cgroup v2 is mounted to try it on" if err is None else _words(err)
        rows.append(_feature(name, since, use, without, err, seen))
    rows += (probe(folder) for probe in _PROBES)
    return tuple(rows)


def _feature(
    name: str, since: str, use: str, without: str, err: int | None, seen: str = ""
) -> Feature:
    return Feature(
        name=name,
        since=since,
        present=err == 0,
        errno=err or None,
        seen=seen or _words(err or 0),
        used_for=use,
        without=without,
    )


def _words(err: int) -> str:
    if err == 0:
        return "works"
    return f"{errno.errorcode.get(err, err)}: {os.strerror(err)}"


def _tried(act: Callable[[], str]) -> tuple[int | None, str]:
    """(errno, what was seen)."""
    try:
        return 0, act()
    except OSError as error:
        return error.errno or errno.EIO, _words(error.errno or errno.EIO)


# Sockets


def _peer_pidfd(_: Path | None) -> Feature:
    def ask() -> str:
        here, there = socket.socketpair()
        with here, there:
            Fd(here.getsockopt(socket.SOL_SOCKET, 77)).close()  # SO_PEERPIDFD
        return "works"

    err, seen = _tried(ask)
    use, without = "who is at the other end", "SO_PEERCRED: a pid, which may be used again"
    return _feature("SO_PEERPIDFD", "6.5", use, without, err, seen)


def _scm_pidfd(_: Path | None) -> Feature:
    def ask() -> str:
        here, there = socket.socketpair()
        with here, there:
            there.setsockopt(socket.SOL_SOCKET, 76, 1)  # SO_PASSPIDFD
        return "works"

    err, seen = _tried(ask)
    use, without = "who sent a message", "SCM_CREDENTIALS: a pid, which may be used again"
    return _feature("SO_PASSPIDFD, SCM_PIDFD", "6.5", use, without, err, seen)


def _proc_connector(_: Path | None) -> Feature:
    """Subscribes, and demands the answer that an empty kernel would not give."""
    connector, index, listen, ignore = 11, 1, 1, 2  # NETLINK_CONNECTOR, CN_IDX_PROC, ...

    def message(operation: int) -> bytes:
        body = struct.pack("=IIIIHHI", index, 1, 0, 0, 4, 0, operation)
        return struct.pack("=IHHII", 16 + len(body), 3, 0, 0, os.getpid()) + body  # NLMSG_DONE

    def ask() -> str:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, connector) as netlink:
            netlink.bind((0, index))
            netlink.send(message(listen))
            try:
                netlink.recv(4096, socket.MSG_DONTWAIT)
            finally:
                netlink.send(message(ignore))
        return "works"

    err, seen = _tried(ask)
    if err == errno.EAGAIN:
        seen = "nobody answers: built without CONFIG_PROC_EVENTS"
    use = "hearing of every fork, exec and exit"
    return _feature("proc connector", "2.6.15", use, "nothing of ours needs it", err, seen)


# Namespaces and cgroups


def _user_namespace(_: Path | None) -> Feature:
    err: int | None = 0
    try:
        spawn(["/proc/self/no such program"], namespaces=["user"])
    except SpawnError as error:
        if error.stage != "exec":  # the namespace was made before that
            err = error.errno
    use, without = "namespaces= without being root", "root, or an error at stage clone"
    return _feature("user namespaces", "3.8", use, without, err)


def _own_cgroup() -> Path | None:
    """The directory of the cgroup v2 that we are in, if such a tree is mounted."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
        ours = Path("/proc/self/cgroup").read_text()
    except OSError:
        return None
    tree = next((line.split()[1] for line in mounts if line.split()[2] == "cgroup2"), None)
    path = re.search(r"^0::/(.*)$", ours, re.M)
    if tree is None or path is None:
        return None
    folder = Path(tree) / path[1]
    return folder if folder.is_dir() else None


def _cgroup_delegation(folder: Path | None) -> Feature:
    name, since = "cgroup v2, delegated to us", "4.5"
    use, without = "cgroup=, limits and counts of a child", "an error at stage cgroup"
    if folder is None:
        return _feature(name, since, use, without, None, "no cgroup v2 tree is mounted")

    def make() -> str:
        below = folder / f"pyforkfd-doctor-{os.getpid()}"
        below.mkdir()
        below.rmdir()
        return f"{folder} lets us make cgroups"

    return _feature(name, since, use, without, *_tried(make))


def _cgroup_controllers(folder: Path | None) -> Feature:
    name, since = "cgroup v2 controllers", "4.5"
    use, without = "limits of memory, processor, processes", "rlimits, which count per process"
    if folder is None:
        return _feature(name, since, use, without, None, "no cgroup v2 tree is mounted")
    err, seen = _tried(lambda: (folder / "cgroup.controllers").read_text().strip())
    if err == 0 and not seen:
        return _feature(name, since, use, without, None, "none: they are taken by cgroup v1")
    return _feature(name, since, use, without, err, seen)


# Files of the kernel


def _proc(_: Path | None) -> Feature:
    def look() -> str:
        return f"mounted; we have {len(os.listdir('/proc/self/fd'))} descriptors"

    use, without = "fd_table, and closing where close_range is refused", "an error that says so"
    return _feature("/proc", "", use, without, *_tried(look))


def _tracefs(_: Path | None) -> Feature:
    use, without = "tracing of execs and exits", "nothing of ours needs it"
    mounts = Path("/proc/mounts").read_text().splitlines()
    tree = next((line.split()[1] for line in mounts if line.split()[2] == "tracefs"), None)
    if tree is None:
        return _feature("tracefs", "4.1", use, without, None, "it is not mounted")
    err, seen = _tried(lambda: f"{tree}: {len(os.listdir(f'{tree}/events'))} groups of events")
    return _feature("tracefs", "4.1", use, without, err, seen)


_PROBES: tuple[Callable[[Path | None], Feature], ...] = (
    _peer_pidfd,
    _scm_pidfd,
    _proc_connector,
    _user_namespace,
    _cgroup_delegation,
    _cgroup_controllers,
    _proc,
    _tracefs,
)

# Files below /proc/sys and what they mean.
_SETTINGS = """
vm.overcommit_memory|2: fork of a large process fails with ENOMEM; a spawn copies nothing
vm.max_map_count|mappings of a process; a fork copies them all
kernel.pid_max|when pids are used again; a pidfd is not fooled
kernel.threads-max|tasks of the system: EAGAIN beyond
user.max_user_namespaces|0: no user namespaces
kernel.unprivileged_userns_clone|0: user namespaces for root alone
kernel.apparmor_restrict_unprivileged_userns|1: user namespaces without capabilities
kernel.yama.ptrace_scope|above 0: pidfd_getfd of processes that are no children is refused
kernel.unprivileged_bpf_disabled|above 0: bpf(2) wants CAP_BPF
fs.nr_open|how far RLIMIT_NOFILE can be raised
fs.file-max|open files of the system: ENFILE beyond
net.core.somaxconn|to this the backlog of a listener is cut
net.unix.max_dgram_qlen|messages that may wait in a UNIX datagram socket
"""


def settings() -> tuple[Setting, ...]:
    """The settings that bear on starting processes, and what follows from each."""
    rows = []
    for line in _SETTINGS.strip().splitlines():
        name, meaning = line.split("|")
        try:
            value = Path("/proc/sys", name.replace(".", "/")).read_text().strip()
        except OSError:
            value = "not there"
        rows.append(Setting(name=name, value=value, meaning=meaning))
    for name, meaning in (
        ("RLIMIT_NOFILE", "numbers from here up are refused: EMFILE, EBADF"),
        ("RLIMIT_NPROC", "tasks of this user: EAGAIN beyond; root is not counted"),
    ):
        soft, hard = map(_limit, resource.getrlimit(getattr(resource, name)))
        rows.append(Setting(name=name, value=f"{soft} (at most {hard})", meaning=meaning))
    return tuple(rows)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
