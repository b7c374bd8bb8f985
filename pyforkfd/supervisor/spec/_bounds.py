"""Bounds of options: the numbers that each takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Bounds:
    """The finite numbers that an option takes.

    Attributes:
        least: the smallest number.
        most: the largest number; None: there is none.
        open: the bound that is itself excluded, "least" or "most"; None: neither.
    """

    least: float
    most: float | None = None
    open: Literal["least", "most"] | None = None

    def contain(self, number: float) -> bool:
        """Whether an option takes this number."""
        if not math.isfinite(number):
            return False
        if number < self.least or (self.open == "least" and number == self.least):
            return False
        if self.most is None:
            return True
        return number < self.most or (self.open != "most" and number == self.most)

    def text(self, show: Callable[[float], str] = "{:g}".format) -> str:
        """Return the bounds in words: "0 or more", "above 0", "from 0 to 1"."""
        least = show(self.least)
        if self.most is None:
            return f"above {least}" if self.open == "least" else f"{least} or more"
        return f"from {least} to {'below ' if self.open == 'most' else ''}{show(self.most)}"


ABOVE_0 = Bounds(0, open="least")
AT_LEAST_0 = Bounds(0)
AT_LEAST_1 = Bounds(1)
AT_LEAST_2 = Bounds(2)
SHARE = Bounds(0, 1)
