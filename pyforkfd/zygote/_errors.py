"""The error of a zygote, and the text of one that happened in another process."""

from __future__ import annotations

import traceback as _traceback
from typing import Any


class ZygoteError(RuntimeError):
    """The zygote could not be started, or made no worker.

    Attributes:
        traceback: Python's, from the zygote or the worker: of a preload that failed, of a
            worker's function that could not be found; "" where the process was killed, or
            never ran.
    """

    traceback: str

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(f"{text}\n\n{traceback.rstrip()}" if traceback else text)
        self._text = text
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._text, self.traceback)


def in_a_line(error: BaseException) -> str:
    """Return the type and message of an exception, as the last line of its traceback has them."""
    lines = _traceback.format_exception_only(error)  # a SyntaxError's begin with its place
    return next(line for line in lines if not line.startswith(" ")).strip()
