"""The events of a Sysmon."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True, kw_only=True)
class FdGrowth:
    """More descriptors were opened than closed, faster than allowed.

    Attributes:
        descriptors: number of open descriptors now.
        gained: how many more that is than at the last count, ``seconds`` ago.
        seconds: time since the last count, about one.
    """

    descriptors: int
    gained: int
    seconds: float

    def __str__(self) -> str:
        rate = self.gained / self.seconds
        return f"{self.descriptors} descriptors are open, {rate:.0f} per second are added"


@dataclass(frozen=True, slots=True, kw_only=True)
class GilStalled:
    """A thread that waited for the GIL did not get it in time; reported when it had it.

    Attributes:
        seconds: how long it waited.
    """

    seconds: float

    def __str__(self) -> str:
        return f"the GIL did not move for {self.seconds:.3f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStalled:
    """A running asyncio loop does not come to its next callback; reported while it stands.

    Attributes:
        loop: the loop.
        seconds: how long it has not moved.
        stack: the stack of its thread, outermost call first; empty if it went on meanwhile.
    """

    loop: asyncio.AbstractEventLoop
    seconds: float
    stack: tuple[traceback.FrameSummary, ...]

    def __str__(self) -> str:
        text = f"the loop has not moved for {self.seconds:.3f} s"
        return "".join([text, "\n", *traceback.format_list(list(self.stack))]).rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundExceeded:
    """A gauge has gone above its bound; reported again only after it was below.

    Attributes:
        gauge: its name.
        value: its value.
        bound: the highest value that is right.
    """

    gauge: str
    value: int
    bound: int

    def __str__(self) -> str:
        return f"{self.gauge}: {self.value} is more than {self.bound}"


SysmonEvent: TypeAlias = FdGrowth | GilStalled | LoopStalled | BoundExceeded
"""An event of a :class:`Sysmon`, with which it calls back."""
