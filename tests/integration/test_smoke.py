"""The test that each wheel must pass where it was built passes here too."""

from __future__ import annotations

import subprocess
import sys

from places import TESTS


def test_smoke() -> None:
    subprocess.run([sys.executable, TESTS / "smoke.py"], check=True, timeout=100)
