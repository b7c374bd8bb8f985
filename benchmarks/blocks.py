"""A process that measures blocks of rounds on request."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class BlockProcess:
    """A Python process that answers each line on its stdin with a line of JSON on its stdout."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def request(self, line: str) -> Any:
        """Send a line, and wait for the answer.

        Raises:
            ChildProcessError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"a measuring process ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()
