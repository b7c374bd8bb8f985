"""What is closed at the end of a ``with`` block."""

from __future__ import annotations

from typing import Self


class Closing:
    """As a context manager it closes at the end, whatever that is to a class."""

    __slots__ = ()

    def close(self) -> None:
        """Each class has its own."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
