"""What a worker may use, and when it lacks something: plain frozen values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeGuard, get_args

# cgroup v2, "cpu.max": the kernel refuses a period outside of these, and a quota below 1 ms.
_PERIODS = (1_000, 1_000_000)
_QUOTA = 1_000
_PERIOD = 100_000
_WEIGHTS = (1, 10_000)
_SHORTEST_STALL = 0.01  # of a window; less is told of every worker that does something

Resource: TypeAlias = Literal["cpu", "io", "memory"]
"""What a process can lack."""
RESOURCES: tuple[Resource, ...] = get_args(Resource)
PRESSURE_WINDOW = 2.0
"""Seconds; the shortest that the kernel lets a process without privileges watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one worker and all its descendants, set on its cgroup; None leaves one alone.

    Attributes:
        memory_max: bytes; at this the kernel kills in the worker (memory.max).
        memory_high: bytes; above this the kernel reclaims and slows it down (memory.high).
        swap_max: bytes of swap on top (memory.swap.max).
        oom_group: the kernel kills all of the worker's processes together
            (memory.oom.group), not the largest alone.
        cpu_weight: 1 to 10000, share where processors are scarce; others have 100
            (cpu.weight).
        cpu_max: processors as a number (1.5), or (quota, period) in microseconds
            (cpu.max).
        pids_max: processes and threads (pids.max).

    Raises:
        ValueError: every value that makes no sense, a line each.
    """

    memory_max: int | None = None
    memory_high: int | None = None
    swap_max: int | None = None
    oom_group: bool | None = None
    cpu_weight: int | None = None
    cpu_max: float | tuple[int, int] | None = None
    pids_max: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            *_check(self.memory_max, "memory_max", _positive, "bytes above 0"),
            *_check(self.memory_high, "memory_high", _positive, "bytes above 0"),
            *_check(self.swap_max, "swap_max", _not_negative, "bytes from 0"),
            *_check(self.oom_group, "oom_group", lambda v: isinstance(v, bool), "True or False"),
            *_check(self.cpu_weight, "cpu_weight", _weight, "a whole number from 1 to 10000"),
            *_check(self.pids_max, "pids_max", _positive, "a whole number above 0"),
            *_check_cpu_max(self.cpu_max),
        ]
        high, most = self.memory_high, self.memory_max
        if not wrong and high is not None and most is not None and high > most:
            wrong.append(
                f"memory_high: {high} is above memory_max, {most}, and would never slow "
                "anything down"
            )
        if wrong:
            raise ValueError("\n".join(wrong))

    def files(self) -> Mapping[str, str]:
        """File of the cgroup -> what is written to it, in this order."""
        wanted: dict[str, object] = {
            "memory.high": self.memory_high,
            "memory.max": self.memory_max,
            "memory.swap.max": self.swap_max,
            "memory.oom.group": None if self.oom_group is None else int(self.oom_group),
            "cpu.weight": self.cpu_weight,
            "cpu.max": _cpu_text(self.cpu_max),
            "pids.max": self.pids_max,
        }
        return {name: str(value) for name, value in wanted.items() if value is not None}

    def controllers(self) -> frozenset[str]:
        """The controllers without which these limits cannot be set: cpu, memory, pids."""
        return frozenset(name.partition(".")[0] for name in self.files())


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGuard:
    """When a worker's memory is too much, and what is done before the kernel does something.

    A worker that is above ``high`` for ``seconds`` is told to stop accepting, to collect
    garbage and to keep unimportant log records in memory; below ``low`` it goes on as before.

    Attributes:
        high: bytes.
        low: bytes; None is four fifths of ``high``.
        seconds: for so long without a break; also the pause between collections.
        keep_accepting: the share of a component's workers, rounded up, that goes on accepting
            whatever they use; 0 lets the guard stop all of them, 1 none.
        recycle: bytes; a worker that reaches them is replaced.  None: none is.
        recycle_after: a worker that was told and is not below ``low`` after so many seconds
            is replaced; None leaves it as it is.

    Raises:
        ValueError: every value that makes no sense, a line each.
    """

    high: int
    low: int | None = None
    seconds: float = 30.0
    keep_accepting: float = 0.5
    recycle: int | None = None
    recycle_after: float | None = 300.0

    def __post_init__(self) -> None:
        wrong = [
            *_check(self.high, "high", _positive, "bytes above 0"),
            *_check(self.low, "low", _positive, "bytes above 0"),
            *_check(self.seconds, "seconds", _duration, "seconds from 0"),
            *_check(self.keep_accepting, "keep_accepting", _share, "a share from 0 to 1"),
            *_check(self.recycle, "recycle", _positive, "bytes above 0"),
            *_check(self.recycle_after, "recycle_after", _duration, "seconds from 0"),
        ]
        if not wrong and self.low is not None and self.low >= self.high:
            wrong.append(
                f"low: {self.low} is not below high, {self.high}: a worker would be told to "
                "stop and to go on in turn"
            )
        if not wrong and self.recycle is not None and self.recycle < self.high:
            wrong.append(
                f"recycle: {self.recycle} is below high, {self.high}, which would be of no use"
            )
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def resume_below(self) -> int:
        """Bytes below which a worker goes on as before."""
        return self.high * 4 // 5 if self.low is None else self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How long a worker may wait for what it lacks, before the supervisor says so.

    Each is a share of two seconds, 0.01 to 1: for so long some process of the worker could not
    run for want of it (the kernel's pressure stall information).  None: it is not watched.

    Attributes:
        cpu: waiting for a processor, ``limits.cpu_max`` included.
        io: waiting for a disk.
        memory: waiting for memory to be reclaimed, for ``limits.memory_high`` too.  A
            ``memory_guard`` takes a worker that waits so long as one above its bound.

    Raises:
        ValueError: every value that makes no sense, a line each.
    """

    cpu: float | None = None
    io: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if wrong := [
            line
            for name in RESOURCES
            for line in _check(getattr(self, name), name, _stall, "a share from 0.01 to 1")
        ]:
            raise ValueError("\n".join(wrong))

    def wanted(self) -> Mapping[Resource, float]:
        """What is watched -> the share."""
        shares = {name: getattr(self, name) for name in RESOURCES}
        return {name: share for name, share in shares.items() if share is not None}


def _check(value: object, name: str, fits: Callable[[object], bool], what: str) -> list[str]:
    if value is None or fits(value):
        return []
    return [f"{name}: {value!r} is not {what}"]


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> bool:
    return _is_whole(value) and value > 0


def _not_negative(value: object) -> bool:
    return _is_whole(value) and value >= 0


def _weight(value: object) -> bool:
    return _is_whole(value) and _WEIGHTS[0] <= value <= _WEIGHTS[1]


def _duration(value: object) -> bool:
    return _is_number(value) and value >= 0


def _stall(value: object) -> bool:
    return _is_number(value) and _SHORTEST_STALL <= value <= 1


def _share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _check_cpu_max(value: object) -> list[str]:
    least = f"cpu_max: {value!r} processors are less than the kernel's {_QUOTA / _PERIOD}"
    bounds = (
        f"cpu_max: {value!r}: the quota is {_QUOTA} microseconds at least, the period "
        f"{_PERIODS[0]} to {_PERIODS[1]}"
    )
    match value:
        case None:
            return []
        case int() | float() if _is_number(value):
            return [] if value * _PERIOD >= _QUOTA else [least]
        case (quota, period) if _is_whole(quota) and _is_whole(period):
            fits = quota >= _QUOTA and _PERIODS[0] <= period <= _PERIODS[1]
            return [] if fits else [bounds]
        case _:
            return [f"cpu_max: {value!r} is neither a number of processors nor (quota, period)"]


def _cpu_text(value: float | tuple[int, int] | None) -> str | None:
    if value is None:
        return None
    quota, period = value if isinstance(value, tuple) else (round(value * _PERIOD), _PERIOD)
    return f"{quota} {period}"
