"""Forks beside threads that register, unregister and open descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from forks import build_library
from places import HELPERS

# In CI a tenth is enough to catch a race; PYFORKFD_STRESS=100000 is the full run: 10,000 forks.
FORKS = max(200, int(os.environ.get("PYFORKFD_STRESS", "10000")) // 10)


def test_forks_beside_busy_threads(programs: Path) -> None:
    """In a process of its own, which tells of every drift; a hang ends with all stacks."""
    library = build_library(programs)
    done = subprocess.run(
        [sys.executable, HELPERS / "fork_stress.py", str(FORKS), library],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-20000:]
    assert done.stdout == f"{FORKS} forks\n", done.stdout[-5000:]
