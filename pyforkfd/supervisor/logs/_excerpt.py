"""The end of a worker's output for an operator: bounded, and safe on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pyforkfd._tables import printable

_MOST_LINES = 10
_MOST_BYTES = 2048


def excerpt(entries: Iterable[bytes]) -> list[str]:
    """Return the last lines of text in log entries.

    Args:
        entries: in JSON, the last at the end.

    Returns:
        At most 10 lines and 2 KiB in all, newlines included; a line that is too long has lost its
        end.  Control characters are escaped.
    """
    found: list[str] = []
    space = _MOST_BYTES
    for entry in reversed(list(entries)):
        body = json.loads(entry)
        text = "\n".join(str(body[key]) for key in ("message", "exception") if body.get(key))
        for line in reversed(text.split("\n")):
            data = printable(line.rstrip(), "\t").encode(errors="backslashreplace")
            if len(found) == _MOST_LINES or space <= 1 or (found and len(data) >= space):
                return found[::-1]
            found.append(data[: space - 1].decode(errors="ignore"))
            space -= len(data) + 1
    return found[::-1]
