"""Plain values: the parts of a child's description, and its exit status."""

from __future__ import annotations

import enum
import os
import signal as _signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from resource import struct_rusage
from typing import Literal, NoReturn, Protocol, TypeAlias

StrPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A file's name; str is encoded as :func:`os.fsencode` does."""
PATHS = (str, bytes, os.PathLike)
"""StrPath for isinstance()."""


class HasFileno(Protocol):
    """An object with a descriptor: a socket, a file, an Fd."""

    def fileno(self) -> int:
        """Return the descriptor's number; it stays the object's."""


class Special(enum.Enum):
    """A source of a child's descriptor that is not one of ours."""

    DEVNULL = "DEVNULL"
    PIPE = "PIPE"
    PIPE_TO_CHILD = "PIPE_TO_CHILD"
    PIPE_FROM_CHILD = "PIPE_FROM_CHILD"
    INHERIT = "INHERIT"
    CLOSED = "CLOSED"


DEVNULL = Special.DEVNULL
"""``/dev/null``, open for reading and writing."""
PIPE = Special.PIPE
"""A pipe: the child reads from its 0 and writes to every other."""
PIPE_TO_CHILD = Special.PIPE_TO_CHILD
"""A pipe that the child reads."""
PIPE_FROM_CHILD = Special.PIPE_FROM_CHILD
"""A pipe that the child writes."""
INHERIT = Special.INHERIT
"""Our descriptor of the same number; an error if it is not open."""
CLOSED = Special.CLOSED
"""Not open in the child."""


Namespace: TypeAlias = Literal["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
"""A kind of namespace, namespaces(7)."""
IdMaps: TypeAlias = Sequence[tuple[int, int, int]]
"""Lines (inside, outside, count) of a map of ids, user_namespaces(7)."""


class CloneFlag(enum.IntFlag):
    """A resource that a clone shares, or does not share, with its parent: clone(2)."""

    NEWTIME = 0x80
    FS = 0x200
    PTRACE = 0x2000
    PARENT = 0x8000
    NEWNS = 0x20000
    SYSVSEM = 0x40000
    UNTRACED = 0x800000
    NEWCGROUP = 0x2000000
    NEWUTS = 0x4000000
    NEWIPC = 0x8000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    IO = 0x80000000
    CLEAR_SIGHAND = 0x100000000


NAMESPACES: dict[Namespace, int] = {
    "cgroup": CloneFlag.NEWCGROUP.value,
    "ipc": CloneFlag.NEWIPC.value,
    "mnt": CloneFlag.NEWNS.value,
    "net": CloneFlag.NEWNET.value,
    "pid": CloneFlag.NEWPID.value,
    "time": CloneFlag.NEWTIME.value,  # needs clone3
    "user": CloneFlag.NEWUSER.value,
    "uts": CloneFlag.NEWUTS.value,
}
"""The flag that makes each kind of namespace."""


class Keep(enum.Enum):
    """The mark of a group and of extra_groups that a change of user leaves alone."""

    KEEP = "KEEP"


KEEP = Keep.KEEP
"""For group and extra_groups: those of the spawner, whatever the user."""


@dataclass(frozen=True, slots=True)
class Open:
    """A file that the child itself opens, after all else is mapped and closed.

    A relative path is taken from the spawner's directory; the spawner's credentials and
    umask apply.  May block (a FIFO): then spawn() waits, other threads do not.
    """

    path: StrPath
    flags: int = os.O_RDONLY
    mode: int = 0o666


@dataclass(frozen=True, slots=True)
class SameAs:
    """The same open file as the child's descriptor ``target``: ``{1: PIPE, 2: SameAs(1)}``."""

    target: int


STDOUT = SameAs(1)
"""For ``{2: STDOUT}``: errors go to the same file as output."""

FdSource: TypeAlias = int | HasFileno | Special | Open | SameAs
"""A source of a child's descriptor: one of ours, or one of the constants above."""

Backend: TypeAlias = Literal["clone3", "clone", "fork-like", "fork"]
"""A way in which a child was started.

clone3 and clone share the parent's memory until the exec and cost the same whatever the
parent's size; fork-like copies the page tables, and is used for changes of credentials
(they would clear the parent's dumpable flag, PR_SET_DUMPABLE(2const)) and where CLONE_VM
does not really share memory.  fork is that of :func:`fork`.
"""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduling policy, sched_setscheduler(2): ``Scheduler(os.SCHED_FIFO, 10)``."""

    policy: int
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Capability sets by name (``"NET_BIND_SERVICE"``, ``"CAP_CHOWN"``) or number.

    None leaves a set as it is.  An ambient capability is put into the permitted and
    inheritable sets as well, as capabilities(7) demands.  A child that stays root gets
    all of the bounding set back at exec: limit that.
    """

    bounding: Iterable[str | int] | None = None
    permitted: Iterable[str | int] | None = None
    inheritable: Iterable[str | int] | None = None
    ambient: Iterable[str | int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """The end of a child.

    Neither a truth value nor a number: ``if status:`` and ``status == 0`` raise a TypeError
    that names ``.success``.

    Attributes:
        code: its exit code, None if a signal ended it.
        signal: the signal that ended it, else None.
        core_dumped: whether it left a core dump.
        rusage: its use of resources, wait4(2); None if other code reaped the child.
        lost: other code reaped the child (or SIGCHLD is ignored) and the kernel has no
            copy of the status (Linux before 6.15): then code and signal are None.
    """

    code: int | None
    signal: int | None
    core_dumped: bool = False
    rusage: struct_rusage | None = None
    lost: bool = False

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self}: an ExitStatus is neither true nor false: write .success")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ExitStatus):
            return self._values() == other._values()
        if isinstance(other, int):
            raise TypeError(
                f"{self}: an ExitStatus is not a number: write .success, .code or .returncode"
            )
        return NotImplemented

    def _values(self) -> tuple[object, ...]:
        return self.code, self.signal, self.core_dumped, self.rusage, self.lost

    @property
    def returncode(self) -> int | None:
        """The return code as subprocess has it: exit code, or minus the signal; None if lost."""
        return self.code if self.signal is None else -self.signal

    @property
    def shell_code(self) -> int | None:
        """The code as a shell has it: exit code, or 128 plus the signal; None if lost."""
        return self.code if self.signal is None else 128 + self.signal

    @property
    def success(self) -> bool:
        """Whether the child exited with code 0."""
        return self.code == 0

    def __str__(self) -> str:
        if self.lost:
            return "exit status lost: other code has waited for the child"
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            name = _signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        return f"killed by {name}" + (" (core dumped)" if self.core_dumped else "")
