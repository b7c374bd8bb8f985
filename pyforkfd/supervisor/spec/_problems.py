"""What is wrong with a specification, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in a specification.

    Attributes:
        place: keys that lead to it, ``("components", "web", "workers")``; a number is an
            index, from 0.
        text: what is wrong, and why.
        line: where the file has it, from 1; None where there is no file.
    """

    place: tuple[str | int, ...]
    text: str
    line: int | None = None

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.place)
        return f"{where}: {self.text}" if where else self.text


class SpecError(ValueError):
    """A specification makes no sense; all that is wrong with it, a line each.

    Attributes:
        problems: every problem, in the order of the file.
    """

    def __init__(self, problems: tuple[Problem, ...], source: str | None = None) -> None:
        """Name the problems, and the file that has them."""
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
