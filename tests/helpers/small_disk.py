"""A disk that is soon full: a small tmpfs in a mount namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyforkfd as ff


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs that only its holder sees, and reach it through /proc/PID/root.

    Args:
        directory: where an empty folder for it can be made.
        size: in bytes, whole pages.
    """
    point = directory / "disk"
    point.mkdir()
    script = (
        f"mount --make-rprivate / && mount -t tmpfs -o size={size} test {point} && echo && exec cat"
    )
    with ff.spawn(
        ["sh", "-c", script],
        namespaces=["mnt"],
        fds={0: ff.PIPE_TO_CHILD, 1: ff.PIPE, 2: 2},
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline(), "the tmpfs was not mounted"
        try:
            yield Path(f"/proc/{holder.pid}/root{point}")
        finally:
            holder.stdin.close()
            holder.wait()
