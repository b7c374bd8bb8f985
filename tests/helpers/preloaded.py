"""Programs under libforkfd_preload.so, and its log."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from places import HELPERS

import pyforkfd as ff

LINE = re.compile(
    r"pid (\d+): descriptor (\d+) \((.*?)\) (would have leaked|leaked) to (.*?)"
    r"(, unless its file actions close or pass it)?(; to pass it on: --keep \2, or FORKFD_KEEP=\2)?"
)


def compile_leak(out: Path, *compiler: str) -> None:
    command: list[str | Path] = [*compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"]
    command += ["-o", out, HELPERS / "leak.c", "-lutil", "-ldl"]
    subprocess.run(command, check=True)


@dataclass(frozen=True)
class Preloaded:
    """Runs programs with the library, and reads what it has logged."""

    log: Path
    library: Path

    def environment(self, **settings: str) -> dict[str, str]:
        others = os.environ.get("LD_PRELOAD", "")
        return {
            **os.environ,
            "LD_PRELOAD": f"{others}:{self.library}".lstrip(":"),
            "FORKFD_LOG": str(self.log),
            **settings,
        }

    def output(
        self,
        *args: str | Path,
        fds: Mapping[int, ff.FdSource] | None = None,
        settings: Mapping[str, str] = {},
    ) -> str:
        """What the program writes; it must succeed."""
        env = self.environment(**settings)
        with ff.spawn(args, fds={1: ff.PIPE, **(fds or {})}, env=env) as child:
            assert child.stdout is not None
            written = child.stdout.read().decode()
        assert child.status is not None and child.status.success, (child.status, written)
        return written

    def logged(self) -> list[tuple[int, str, str]]:
        """(descriptor, target, command) of each line."""
        text = self.log.read_text() if self.log.exists() else ""
        found = [LINE.fullmatch(line) for line in text.splitlines()]
        assert all(found), text
        return [(int(m[2]), m[3], m[5]) for m in found if m]
