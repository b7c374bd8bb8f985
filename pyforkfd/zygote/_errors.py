"""What can go wrong with a zygote."""

from __future__ import annotations

from typing import Any


class ZygoteError(RuntimeError):
    """The zygote could not be started, or gave no worker.

    Attributes:
        traceback: what Python said there: of a preload that failed, of a worker's function
            that could not be found; "" where the zygote was killed, or never ran.
    """

    traceback: str

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(f"{text}\n\n{traceback.rstrip()}" if traceback else text)
        self._text = text
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._text, self.traceback)
