import enum
from collections.abc import Sequence
from typing import Any, TypeAlias

from ._types import StrPath

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
    AS_EXEC_LEAVES = 8

class FdStep(enum.IntEnum):
    DUP = 0
    KEEP = 1
    CLOSE = 4
    CLOSE_FROM = 5
    OPEN = 6

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
    wants_pidfd: bool
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
    def add_file_action(
        self,
        kind: FdStep,
        from_: int,
        to: int,
        path: bytes = b"",
        flags: int = 0,
        mode: int = 0,
    ) -> None: ...
    def inherit_standard_fds(self) -> None: ...
    def add_limit(self, resource: int, soft: int, hard: int) -> None: ...
    def add_uid_map(self, inside: int, outside: int, count: int) -> None: ...
    def add_gid_map(self, inside: int, outside: int, count: int) -> None: ...

def fork_exec(
    args: Sequence[StrPath],
    executable_list: Sequence[bytes],
    close_fds: bool,
    pass_fds: tuple[int, ...],
    cwd: StrPath | None,
    env: Sequence[bytes] | None,
    p2cread: int,
    c2pwrite: int,
    errwrite: int,
    errpipe_write: int,
    restore_signals: bool,
    call_setsid: bool,
    pgid_to_set: int,
    gid: int | None,
    extra_groups: list[int] | None,
    uid: int | None,
    child_umask: int,
    options: SpawnPlan | None,
    /,
) -> tuple[int, int, dict[int, int]]: ...
def spawn_count() -> int: ...
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
