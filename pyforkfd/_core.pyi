import enum
from collections.abc import Callable
from typing import Any, TypeAlias, overload

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
    def add_limit(self, resource: int, soft: int, hard: int) -> None: ...
    def add_uid_map(self, inside: int, outside: int, count: int) -> None: ...
    def add_gid_map(self, inside: int, outside: int, count: int) -> None: ...

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
def fork(cgroup: tuple[int, str] | None, warn: Callable[[], None]) -> tuple[int, int] | None: ...
def lock_fork_lock(exclusive: bool) -> None: ...
def unlock_fork_lock(exclusive: bool) -> None: ...

class FdSection:
    @overload
    def __init__(self, inheritable: list[int]) -> None: ...
    @overload
    def __init__(
        self, redirect: list[tuple[int, int]], in_parent: bool, in_child: bool
    ) -> None: ...
    def end(self) -> None: ...

_Timing: TypeAlias = tuple[int, int, int, int]
_Function: TypeAlias = Callable[[], object] | None

def add_at_fork(
    functions: tuple[_Function, _Function, _Function], registration: object, order: int
) -> int: ...
def remove_at_fork(number: int, /) -> bool: ...
def at_fork_handlers() -> list[tuple[Any, _Timing, _Timing, _Timing]]: ...
def run_before() -> None: ...
def run_after_in_parent() -> None: ...
def run_after_in_child() -> None: ...

class ChildActions:
    def __init__(
        self,
        close: list[int],
        cloexec: list[int],
        redirect: list[tuple[int, int]],
        order: int,
    ) -> None: ...
    def unregister(self) -> None: ...
    def timing(self) -> _Timing: ...

def fd_table(pid: int, /) -> list[_FdRow]: ...
