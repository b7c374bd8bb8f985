"""The facilities of this kernel, each tried, and what is done without them."""

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
        name: as in manual pages.
        since: the Linux version that introduced it, for people: presence is found by trying.
        present: it works here.
        errno: the error of the kernel, or of a filter in front of it; None if there was none.
        seen: the result of the trial, in words.
        used_for: its purpose.
        without: the replacement where it is missing.
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
    """A setting of the system that affects starting processes and passing descriptors.

    Attributes:
        name: as in sysctl(8) or getrlimit(2).
        value: its value; ``not there`` where this kernel has no such setting.
        meaning: the consequence for starting processes.
    """

    name: str
    value: str
    meaning: str


# Probed by the core: its name there, the manual's, the first Linux, its use, the replacement.
_CORE = """
clone3|clone3(2)|5.3|starting a child|clone(2)
clone_clear_sighand|CLONE_CLEAR_SIGHAND|5.5|resetting handlers|the child resets them one by one
clone_into_cgroup|CLONE_INTO_CGROUP|5.7|cgroup=|the child writes itself into cgroup.procs
clone_pidfd|CLONE_PIDFD|5.2|the pidfd of a child|pidfd_open(2), before anybody can reap it
shared_memory|memory shared by CLONE_VM||starting at flat cost|page tables are copied (fork-like)
pidfd_open|pidfd_open(2)|5.3|the pidfd of any process|none: processes are identified by pidfd
pidfd_send_signal|pidfd_send_signal(2)|5.1|signals|none: pids may be used again
waitid_pidfd|waitid(P_PIDFD)|5.4|exit status and usage|none: pids may be used again
pidfs|pidfs: inodes of pidfds|6.9|LISTEN_PIDFDID|the variable is not set
pidfd_exit_information|PIDFD_INFO_EXIT|6.15|the status of a child reaped by another|ExitStatus.lost
pidfd_getfd|pidfd_getfd(2)|5.6|sockets of other processes|sock_diag(7) alone
close_range|close_range(2)|5.9|closing at flat cost|/proc/self/fd is read, closed one by one
close_range_cloexec|CLOSE_RANGE_CLOEXEC|5.11|marking many at once|they are marked one by one
close_range_unshare|CLOSE_RANGE_UNSHARE|5.9|a start without a copied table|it is copied, then closed
f_dupfd_query|fcntl(F_DUPFD_QUERY)|6.10|same_open_file|kcmp(2)
kcmp|kcmp(2)|3.5|which descriptors are one open file|inodes, where they differ
execveat|execveat(2)|3.19|executable= by descriptor|an error at stage exec
seccomp|seccomp(2) filters|3.5|seccomp=|an error at stage seccomp: never dropped
bpf|bpf(2)|3.18|watching execs and exits in the kernel|nothing of ours needs it
"""


def features() -> tuple[Feature, ...]:
    """Find the features that this kernel, or the sandbox in front of it, lets us use.

    Each feature is tried, with no lasting effect: a few children are started that do nothing,
    and a cgroup is made and removed.  Safe to call from any thread.
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


def _try(act: Callable[[], str]) -> tuple[int | None, str]:
    """Return (errno, the result in words)."""
    try:
        return 0, act()
    except OSError as error:
        return error.errno or errno.EIO, _words(error.errno or errno.EIO)


# Sockets


def _peer_pidfd(_: Path | None) -> Feature:
    def use() -> str:
        here, there = socket.socketpair()
        with here, there:
            Fd(here.getsockopt(socket.SOL_SOCKET, 77)).close()  # SO_PEERPIDFD
        return "works"

    err, seen = _try(use)
    purpose, without = "the peer of a socket", "SO_PEERCRED: a pid, which may be used again"
    return _feature("SO_PEERPIDFD", "6.5", purpose, without, err, seen)


def _scm_pidfd(_: Path | None) -> Feature:
    def use() -> str:
        here, there = socket.socketpair()
        with here, there:
            there.setsockopt(socket.SOL_SOCKET, 76, 1)  # SO_PASSPIDFD
        return "works"

    err, seen = _try(use)
    purpose, without = "the sender of a message", "SCM_CREDENTIALS: a pid, which may be used again"
    return _feature("SO_PASSPIDFD, SCM_PIDFD", "6.5", purpose, without, err, seen)


def _proc_connector(_: Path | None) -> Feature:
    """Subscribe, and require the reply that a kernel without the connector does not send."""
    connector, index, listen, ignore = 11, 1, 1, 2  # NETLINK_CONNECTOR, CN_IDX_PROC, ...

    def message(operation: int) -> bytes:
        body = struct.pack("=IIIIHHI", index, 1, 0, 0, 4, 0, operation)
        return struct.pack("=IHHII", 16 + len(body), 3, 0, 0, os.getpid()) + body  # NLMSG_DONE

    def use() -> str:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, connector) as netlink:
            netlink.bind((0, index))
            netlink.send(message(listen))
            try:
                netlink.recv(4096, socket.MSG_DONTWAIT)
            finally:
                netlink.send(message(ignore))
        return "works"

    err, seen = _try(use)
    if err == errno.EAGAIN:
        seen = "no reply: built without CONFIG_PROC_EVENTS"
    purpose = "notification of every fork, exec and exit"
    return _feature("proc connector", "2.6.15", purpose, "nothing of ours needs it", err, seen)


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
    """Return the directory of our own cgroup v2, if such a tree is mounted."""
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
        return f"cgroups can be made in {folder}"

    return _feature(name, since, use, without, *_try(make))


def _cgroup_controllers(folder: Path | None) -> Feature:
    name, since = "cgroup v2 controllers", "4.5"
    use, without = "limits of memory, processor, processes", "rlimits, which count per process"
    if folder is None:
        return _feature(name, since, use, without, None, "no cgroup v2 tree is mounted")
    err, seen = _try(lambda: (folder / "cgroup.controllers").read_text().strip())
    if err == 0 and not seen:
        return _feature(name, since, use, without, None, "none: cgroup v1 has them all")
    return _feature(name, since, use, without, err, seen)


# Files of the kernel


def _proc(_: Path | None) -> Feature:
    def count() -> str:
        return f"mounted; {len(os.listdir('/proc/self/fd'))} descriptors of ours"

    use, without = "fd_table, and closing where close_range is refused", "an error that names /proc"
    return _feature("/proc", "", use, without, *_try(count))


def _tracefs(_: Path | None) -> Feature:
    use, without = "tracing of execs and exits", "nothing of ours needs it"
    mounts = Path("/proc/mounts").read_text().splitlines()
    tree = next((line.split()[1] for line in mounts if line.split()[2] == "tracefs"), None)
    if tree is None:
        return _feature("tracefs", "4.1", use, without, None, "it is not mounted")
    err, seen = _try(lambda: f"{tree}: {len(os.listdir(f'{tree}/events'))} groups of events")
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
vm.max_map_count|greatest number of mappings of a process; a fork copies them all
kernel.pid_max|when pids are used again; a pidfd still means the same process
kernel.threads-max|greatest number of tasks of the system: EAGAIN beyond
user.max_user_namespaces|0: user namespaces are off
kernel.unprivileged_userns_clone|0: user namespaces for root alone
kernel.apparmor_restrict_unprivileged_userns|1: user namespaces without capabilities
kernel.yama.ptrace_scope|above 0: pidfd_getfd of processes that are no children is refused
kernel.unprivileged_bpf_disabled|above 0: bpf(2) needs CAP_BPF
fs.nr_open|upper bound of RLIMIT_NOFILE
fs.file-max|greatest number of open files of the system: ENFILE beyond
net.core.somaxconn|upper bound of a listener's backlog
net.unix.max_dgram_qlen|greatest number of messages waiting in a UNIX datagram socket
"""


def settings() -> tuple[Setting, ...]:
    """Read the settings that affect starting processes, with the meaning of each."""
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
