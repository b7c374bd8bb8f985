"""A test that hangs ends by itself, and is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import TESTS
from processes import alive

CONFTEST = f"""
import sys
sys.path.insert(0, {str(TESTS / "helpers")!r})
import hangs
from hangs import guard_against_hangs as pytest_configure
hangs.GRACE_SECONDS = 1.0
"""
HANGS = {
    "in Python": "import threading; threading.Event().wait()",
    "in C, without the GIL": "import ctypes; ctypes.CDLL(None).pause()",
    "in C, with the GIL": "import ctypes; ctypes.PyDLL(None).pause()",
}


def run(directory: Path, body: str) -> str:
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(f"def test_of_that_name():\n    {body}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", "--timeout=1", directory],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("where", HANGS)
def test_it_ends_and_is_named(where: str, tmp_path: Path) -> None:
    printed = run(tmp_path, HANGS[where])
    assert "in test_of_that_name\n" in printed
    assert ("test_of_that_name hangs" in printed) is (where != "in C, with the GIL")


def test_its_processes_end(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    printed = run(
        tmp_path,
        "import subprocess, pathlib; p = subprocess.Popen(['sleep', '1000'])\n"
        f"    pathlib.Path({str(file)!r}).write_text(str(p.pid)); p.wait()",
    )
    pid = int(file.read_text())
    assert f"{pid} (sleep)" in printed
    assert not alive(pid)
