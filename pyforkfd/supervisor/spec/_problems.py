"""Problems of a specification, each with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

_LONGEST_KEY = 100  # characters of one key that a message shows

Place: TypeAlias = tuple[str | int, ...]
"""Keys and indexes that lead to a value, ``("components", "web", "listen", 0)``."""
Findings: TypeAlias = Iterator[tuple[Place, str]]
"""Place of a wrong value, and what is wrong; what to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One wrong value in a specification.

    Attributes:
        place: keys that lead to the value, ``("components", "web", "workers")``; a number is
            an index, from 0.
        text: the fault, its reason, and what to write.
        line: line of the value in the file, from 1; None: there is no file.
    """

    place: Place
    text: str
    line: int | None = None

    def __str__(self) -> str:
        where = ".".join(str(part)[:_LONGEST_KEY] for part in self.place)
        return f"{where}: {self.text}" if where else self.text


class SpecError(ValueError):
    """A specification is wrong; the message has a line for each problem.

    Attributes:
        problems: every problem, in the order of the file.
        source: the file's name; None: the specification was not read from a file.
    """

    def __init__(self, problems: tuple[Problem, ...], source: str | None = None) -> None:
        """Join the problems into a message.

        Args:
            problems: every problem.
            source: name of the file that has them.
        """
        self.problems = problems
        self.source = source
        super().__init__("\n".join(self._lines()))

    def _lines(self) -> list[str]:
        return [
            (f"{self.source}:" if self.source else "")
            + (f"{problem.line}:" if self.source and problem.line else "")
            + (" " if self.source else "")
            + str(problem)
            for problem in self.problems
        ]
