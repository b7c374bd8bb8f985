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
        most: the largest number; None: that of the option's unit.
        open: the bound that is itself excluded, "least" or "most"; None: neither.
    """

    least: float
    most: float | None = None
    open: Literal["least", "most"] | None = None

    def contain(self, number: float) -> bool:
        """Whether an option takes this number."""
        if isinstance(number, float) and not math.isfinite(number):
            return False
        if number < self.least or (self.open == "least" and number == self.least):
            return False
        if self.most is None:
            return True
        return number < self.most or (self.open != "most" and number == self.most)

    def text(self, show: Callable[[float], str] = "{:.10g}".format) -> str:
        """Return the bounds in words: "0 or more", "above 0", "from 0 to 1"."""
        least = show(self.least)
        if self.most is None:
            return f"above {least}" if self.open == "least" else f"{least} or more"
        if self.open == "least":
            return f"above {least}, at most {show(self.most)}"
        return f"from {least} to {'below ' if self.open == 'most' else ''}{show(self.most)}"


ABOVE_0 = Bounds(0, open="least")
AT_LEAST_0 = Bounds(0)
AT_LEAST_1 = Bounds(1)
SHARE = Bounds(0, 1)

# The supervisor loops over these, or retains as many things, and a system call takes them.
# None is what a machine can bear: that is found out by trying.
WORKERS = Bounds(0, 4096)
"""Workers of a component, and of a service: each is a process and several descriptors, of which
a kernel has 32,768 and a service manager grants 524,288 by default."""
BACKLOG = Bounds(1, 2**31 - 1)  # listen(2) takes an int; the kernel cuts it to somaxconn
RESTARTS = Bounds(0, 1_000_000)
REQUESTS = Bounds(1, 1_000_000_000)
RETRIES = Bounds(0, 1000)
ROTATED_FILES = Bounds(1, 1000)  # each is renamed at each rotation
GENERATIONS = Bounds(2, 100)
PROCESSES = Bounds(1, 4_194_304)  # PID_MAX_LIMIT; pids.max takes no more

MOST_ELEMENTS = 1000
"""Elements of an array, keys of a table."""
MOST_LISTENERS = 253
"""Listeners of a component: SCM_MAX_FD, what one message can pass."""
LONGEST_TEXT = 131_071
"""Bytes of a string: MAX_ARG_STRLEN less the null byte, execve(2)."""
LARGEST_FILE = 256 * 1024
"""Bytes of a configuration: the loop waits while it is read."""
DEEPEST = 32
"""Levels of tables and arrays within one another."""
MOST_PROBLEMS = 100
"""Problems that are reported at once."""
