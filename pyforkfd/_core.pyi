import enum
import socket
from collections.abc import Iterable
from typing import Any, TypeAlias

from ._errors import PassingError
from ._fd import Fd
from ._passing import Buffer, Credentials, Received
from ._types import HasFileno

_FdRow: TypeAlias = tuple[
    int,
    str,
    str,
    bool,
    int,
    int | None,
    int | None,
    int | None,
    dict[str, Any] | None,
    tuple[int, ...] | None,
]

CLONE_FLAGS: int

class OtherThreads(Exception):
    args: tuple[list[tuple[int, bytes]]]

class SysError(Exception):
    args: tuple[str, int, str, str]

class FdKind(enum.IntEnum):
    DESCRIPTOR = 0
    INHERIT_IF_OPEN = 1
    NULL_DEVICE = 2
    PIPE_TO_CHILD = 3
    PIPE_FROM_CHILD = 4
    OPEN = 5
    SAME_AS = 6
    CLOSED = 7

class SpawnPlan:
    argv: list[bytes]
    candidates: list[bytes]
    exec_fd: int | None
    program: bytes
    env: list[bytes] | None
    close_others: bool
    listen_names: list[bytes] | None
    new_session: bool
    process_group: int | None
    controlling_terminal: int | None
    controlling_terminal_path: bytes
    foreground_terminal: int | None
    foreground_terminal_path: bytes
    umask: int | None
    nice: int | None
    affinity: bytes
    scheduler_policy: int | None
    scheduler_priority: int
    chroot: bytes
    groups: list[int] | None
    gid: int | None
    uid: int | None
    user_name: str
    group_name: str
    bounding: int | None
    permitted: int | None
    inheritable: int | None
    ambient: int | None
    cwd: bytes
    cwd_fd: int | None
    no_new_privs: bool
    death_signal: int
    death_with_process: bool
    namespaces: int
    cgroup_path: bytes
    cgroup_fd: int | None
    seccomp: bytes
    signal_mask: int | None
    default_signals: int
    ignore_signals: int
    def __init__(self) -> None: ...
    def add_fd(
        self,
        target: int,
        kind: FdKind,
        source: int = -1,
        path: bytes = b"",
        flags: int = 0,
        mode: int = 0,
    ) -> None: ...
    def inherit_standard_fds(self) -> None: ...
    def clear_fds(self) -> None: ...
    def add_limit(self, resource: int, soft: int, hard: int) -> None: ...
    def add_uid_map(self, inside: int, outside: int, count: int) -> None: ...
    def add_gid_map(self, inside: int, outside: int, count: int) -> None: ...
    def state(self) -> tuple[Any, ...]: ...
    @staticmethod
    def from_state(state: tuple[Any, ...]) -> SpawnPlan: ...

def become(
    plan: SpawnPlan, sources: list[int], parent_pid: int, parent_pidfd: int, report_fd: int
) -> None: ...
def failed(
    plan: SpawnPlan, sources: list[int], stage: int, index: int
) -> tuple[str, str, str]: ...
def clone(
    flags: int, exit_signal: int, cgroup_fd: int, pid_slot: memoryview | None
) -> tuple[int, int]: ...
def other_threads() -> list[tuple[int, bytes]]: ...
def become_subreaper() -> None: ...
def trim_memory() -> None: ...
def why_not_clone(flags: int) -> str: ...
def plan_fds(wanted: dict[int, int], /) -> list[tuple[str, int, int]]: ...
def spawn(plan: SpawnPlan, sources: list[int]) -> tuple[int, int, str, dict[int, int]]: ...
def wait_pidfd(pidfd: int, timeout: float | None) -> bool: ...
def reap(pidfd: int) -> tuple[bool, int, int, tuple[float, ...] | None] | None: ...
def own_pidfd_inode() -> int | None: ...
def send_signal(pidfd: int, signal: int) -> None: ...
def capability_names() -> list[str]: ...
def stages() -> list[str]: ...
def inject_fault(stage: str, errno: int) -> None: ...
def clear_fault() -> None: ...
def force_backend(name: str | None) -> None: ...
def refusals() -> dict[str, int]: ...
def cloexec(fd: int, /) -> bool: ...
def set_cloexec(fd: int, on: bool, /) -> None: ...
def close_range(first: int, last: int, cloexec: bool, unshare: bool) -> None: ...
def same_open_file(a: int, b: int, /) -> bool: ...
def lock_fork_lock() -> None: ...
def unlock_fork_lock() -> None: ...
def reset_fork_lock() -> None: ...
def fd_table(pid: int, /) -> list[_FdRow]: ...

class ChannelSending:
    def __init__(
        self, data: Buffer | Iterable[Buffer], fds: Iterable[int | HasFileno], /
    ) -> None: ...
    def advance(self, sock: int, /) -> bool: ...
    def keep(self) -> None: ...
    @property
    def begun(self) -> bool: ...

class ChannelReceiving:
    def __init__(self, max_bytes: int, max_fds: int, /) -> None: ...
    def advance(self, sock: int, /) -> Received | None: ...

def register_passing(
    fd: type[Fd],
    received: type[Received],
    credentials: type[Credentials],
    error: type[PassingError],
    socket: type[socket.socket],
    /,
) -> None: ...
def send_fds(
    sock: int | HasFileno,
    data: Buffer | Iterable[Buffer],
    fds: Iterable[int | HasFileno],
    flags: int,
    timeout: float | None,
    credentials: Credentials | None,
    /,
) -> int: ...
def recv_fds(
    sock: int | HasFileno, max_bytes: int, max_fds: int, flags: int, timeout: float | None, /
) -> Received: ...
def close_received(received: Received, /) -> None: ...
def parse_control(area: bytes, /) -> tuple[list[int], Credentials | None, int | None, bool]: ...
def wait_ready(fd: int, events: int, timeout: float | None, /) -> bool: ...
def peer_credentials(sock: int, /) -> Credentials: ...
def peer_pidfd(sock: int, /) -> Fd: ...
def pass_credentials(sock: int, on: bool, /) -> None: ...
def pass_pidfd(sock: int, on: bool, /) -> None: ...
