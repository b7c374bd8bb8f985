"""Limits of a worker, its memory guard and its pressure thresholds: plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

from ._bounds import ABOVE_0, AT_LEAST_0, PROCESSES, SHARE, Bounds
from ._reader import check_fields
from ._units import Bytes, Seconds

# cgroup v2, "cpu.max": the kernel refuses a period outside of these, and a quota below 1 ms.
_PERIODS = Bounds(1_000, 1_000_000)
_PROCESSORS = Bounds(0.01, 8192)  # NR_CPUS is at most that
_QUOTAS = Bounds(1_000, 8192 * 1_000_000)
_PERIOD = 100_000
_WEIGHTS = Bounds(1, 10_000)
# Of a window; less is reported of every worker that does something.
_STALLS = Bounds(0.01, 1)

Resource: TypeAlias = Literal["cpu", "io", "memory"]
"""A resource of which a process may run short."""
RESOURCES: tuple[Resource, ...] = get_args(Resource)
PRESSURE_WINDOW = 2.0
"""Seconds; the shortest window that the kernel lets a process without privileges watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one worker and all its descendants, set on its cgroup; None sets none.

    Attributes:
        memory_max (bytes, above 0; default None): memory at which the kernel kills in the
            worker (memory.max).
        memory_high (bytes, above 0; default None): memory above which the kernel reclaims and
            slows the worker down (memory.high); not above ``memory_max``.
        swap_max (bytes, 0 or more; default None): swap on top of it (memory.swap.max).
        oom_group (boolean; default None): the kernel kills all of the worker's processes
            together (memory.oom.group), not the largest alone.
        cpu_weight (integer, from 1 to 10000; default None): share where processors are scarce;
            others have 100 (cpu.weight).
        cpu_max (number or tuple of 2; default None): processors as a number (1.5), from 0.01 to
            8192, or quota and period in microseconds: 1000 to 8192000000, 1000 to 1000000
            (cpu.max).
        pids_max (integer, from 1 to 4194304; default None): processes and threads (pids.max).

    Raises:
        ValueError: values are wrong; the message has a line for each.
    """

    memory_max: Annotated[Bytes, ABOVE_0] | None = None
    memory_high: Annotated[Bytes, ABOVE_0] | None = None
    swap_max: Annotated[Bytes, AT_LEAST_0] | None = None
    oom_group: bool | None = None
    cpu_weight: Annotated[int, _WEIGHTS] | None = None
    cpu_max: float | tuple[int, int] | None = None
    pids_max: Annotated[int, PROCESSES] | None = None

    def __post_init__(self) -> None:
        wrong = check_fields(self)
        if not any(line.startswith("cpu_max:") for line in wrong):
            wrong += _check_cpu_max(self.cpu_max)
        high, most = self.memory_high, self.memory_max
        if not wrong and high is not None and most is not None and high > most:
            wrong.append(
                f"memory_high: {high} is above memory_max, {most}, and would never slow "
                "anything down; write less"
            )
        if wrong:
            raise ValueError("\n".join(wrong))

    def files(self) -> Mapping[str, str]:
        """Map the cgroup's files to what is written into them, in this order."""
        values: dict[str, object] = {
            "memory.high": self.memory_high,
            "memory.max": self.memory_max,
            "memory.swap.max": self.swap_max,
            "memory.oom.group": None if self.oom_group is None else int(self.oom_group),
            "cpu.weight": self.cpu_weight,
            "cpu.max": _cpu_text(self.cpu_max),
            "pids.max": self.pids_max,
        }
        return {name: str(value) for name, value in values.items() if value is not None}

    def controllers(self) -> frozenset[str]:
        """Return the controllers that these limits need, of cpu, memory and pids."""
        return frozenset(name.partition(".")[0] for name in self.files())


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGuard:
    """Bounds of a worker's memory, and what follows before the kernel acts.

    A worker that is above ``high`` for ``seconds`` is ordered to stop accepting, to collect
    garbage and to retain unimportant log records in memory; below ``low`` it resumes.

    Attributes:
        high (bytes, above 0; required): memory above which the guard acts.
        low (bytes, above 0; default None): memory below which the worker resumes, less than
            ``high``; None: four fifths of ``high``.
        seconds (seconds, 0 or more; default 30): time above ``high`` without a break; also the
            pause between collections.
        keep_accepting (number, from 0 to 1; default 0.5): share of a component's workers,
            rounded up, that goes on accepting whatever they use; 0 lets the guard stop all of
            them, 1 none.
        recycle (bytes, above 0; default None): memory at which a worker is replaced, not less
            than ``high``; None: none is.
        recycle_after (seconds, 0 or more; default 300): time after the order in which a worker
            must get below ``low``, else it is replaced; None: it is not.

    Raises:
        ValueError: values are wrong; the message has a line for each.
    """

    high: Annotated[Bytes, ABOVE_0]
    low: Annotated[Bytes, ABOVE_0] | None = None
    seconds: Annotated[Seconds, AT_LEAST_0] = 30.0
    keep_accepting: Annotated[float, SHARE] = 0.5
    recycle: Annotated[Bytes, ABOVE_0] | None = None
    recycle_after: Annotated[Seconds, AT_LEAST_0] | None = 300.0

    def __post_init__(self) -> None:
        wrong = check_fields(self)
        if not wrong and self.low is not None and self.low >= self.high:
            wrong.append(
                f"low: {self.low} is not below high, {self.high}: a worker would stop and "
                "resume in turn; write less"
            )
        if not wrong and self.recycle is not None and self.recycle < self.high:
            wrong.append(
                f"recycle: {self.recycle} is below high, {self.high}, and the guard would never "
                "act; write more"
            )
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def resume_below(self) -> int:
        """Bytes below which a worker resumes."""
        return self.high * 4 // 5 if self.low is None else self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Shares of time that a worker may wait for a resource before the supervisor reports it.

    Each is a share of two seconds: for so long some process of the worker could not run for
    want of the resource (the kernel's pressure stall information).  None: it is not watched.

    Attributes:
        cpu (number, from 0.01 to 1; default None): waiting for a processor,
            ``limits.cpu_max`` included.
        io (number, from 0.01 to 1; default None): waiting for a disk.
        memory (number, from 0.01 to 1; default None): waiting for memory to be reclaimed, for
            ``limits.memory_high`` too.  A ``memory_guard`` treats a worker that waits so long
            as one above ``high``.

    Raises:
        ValueError: values are wrong; the message has a line for each.
    """

    cpu: Annotated[float, _STALLS] | None = None
    io: Annotated[float, _STALLS] | None = None
    memory: Annotated[float, _STALLS] | None = None

    def __post_init__(self) -> None:
        if wrong := check_fields(self):
            raise ValueError("\n".join(wrong))

    def wanted(self) -> Mapping[Resource, float]:
        """Map the resources that are watched to their shares."""
        shares = {name: getattr(self, name) for name in RESOURCES}
        return {name: share for name, share in shares.items() if share is not None}


def _check_cpu_max(value: float | tuple[int, int] | None) -> list[str]:
    match value:
        case None:
            return []
        case (quota, period):
            if _QUOTAS.contain(quota) and _PERIODS.contain(period):
                return []
            return [
                (
                    f"cpu_max: {value} is out of range; write a quota {_QUOTAS.text()} "
                    f"and a period {_PERIODS.text()}, in microseconds"
                )
            ]
        case _:
            if _PROCESSORS.contain(value):
                return []
            return [
                (
                    f"cpu_max: {value} is out of range; write a number of processors, "
                    f"{_PROCESSORS.text()}, or (quota, period)"
                )
            ]


def _cpu_text(value: float | tuple[int, int] | None) -> str | None:
    if value is None:
        return None
    quota, period = (round(value * _PERIOD), _PERIOD) if isinstance(value, int | float) else value
    return f"{quota} {period}"
