"""What a Sysmon calls back with."""

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
        descriptors: how many are open now.
        gained: how many more than when it was last looked, ``seconds`` ago.
        seconds: about one.
    """

    descriptors: int
    gained: int
    seconds: float

    def __str__(self) -> str:
        rate = self.gained / self.seconds
        return f"{self.descriptors} descriptors are open, {rate:.0f} per second are added"


@dataclass(frozen=True, slots=True, kw_only=True)
class GilStalled:
    """A thread that wanted the GIL did not get it for so long; told when it had it.

    Attributes:
        seconds: how long.
    """

    seconds: float

    def __str__(self) -> str:
        return f"the GIL did not move for {self.seconds:.3f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStalled:
    """A running asyncio loop has not come to its next callback; told while it does not.

    Attributes:
        loop: which.
        seconds: for how long already.
        stack: where its thread is, outermost call first; empty if it went on meanwhile.
    """

    loop: asyncio.AbstractEventLoop
    seconds: float
    stack: tuple[traceback.FrameSummary, ...]

    def __str__(self) -> str:
        text = f"the loop has not moved for {self.seconds:.3f} s"
        return "".join([text, "\n", *traceback.format_list(list(self.stack))]).rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundExceeded:
    """A gauge has gone above its bound; told again only after it was below.

    Attributes:
        gauge: its name.
        value: what it reads.
        bound: what it may be at most.
    """

    gauge: str
    value: int
    bound: int

    def __str__(self) -> str:
        return f"{self.gauge}: {self.value} is more than {self.bound}"


SysmonEvent: TypeAlias = FdGrowth | GilStalled | LoopStalled | BoundExceeded
"""What a :class:`Sysmon` calls back with."""
