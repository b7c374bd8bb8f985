"""What must be true of the numbers of workers in the chaos test."""

from __future__ import annotations

from typing import Any

from chaos_service import BASE, counts


class Model:
    """The numbers of workers that may be right: several where no reply came.

    Attributes:
        wanted: component -> numbers of workers.
        specified: component -> numbers in the file that was accepted last.
    """

    def __init__(self) -> None:
        self.wanted = {name: {count} for name, count in BASE.items()}
        self.specified = {name: {count} for name, count in BASE.items()}

    def scaled(self, name: str, count: int, *, certain: bool) -> None:
        self.wanted[name] = {count} | (set() if certain else self.wanted[name])

    def reloaded(self, file: dict[str, int], *, certain: bool) -> None:
        """A number that has not changed in the file leaves the component as it was scaled."""
        for name, count in file.items():
            new = self.wanted[name].copy() if count in self.specified[name] else set()
            if self.specified[name] != {count}:
                new.add(count)
            self.wanted[name] = new | (set() if certain else self.wanted[name])
            self.specified[name] = {count} | (set() if certain else self.specified[name])

    def contradictions(self, status: dict[str, Any]) -> list[str]:
        found = counts(status)
        return [
            f"{name}: {found.get(name)} workers are wanted, not {sorted(right)}"
            for name, right in self.wanted.items()
            if found.get(name) not in right
        ]
