"""A program that executes itself in its own place has what it left inheritable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from places import HELPERS
from preloaded import Preloaded

import pyforkfd as ff


@pytest.fixture
def restart(shared_path: Path) -> Path:
    """The program of tests/helpers/restart.c."""
    program = shared_path / "restart"
    flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-O1"]
    subprocess.run(["cc", *flags, "-o", program, HELPERS / "restart.c"], check=True)
    return program


def shown(preloaded: Preloaded, args: Sequence[str | Path], env: Mapping[str, str] = {}) -> str:
    """What the last program writes, whoever is its parent by then."""
    reader, writer = os.pipe()
    with open(reader) as output:
        try:
            settings = preloaded.environment(**env)
            with ff.spawn(args, fds={1: writer}, env=settings, cwd=preloaded.log.parent) as child:
                status = child.wait(timeout=30)
        finally:
            os.close(writer)
        assert status.success, status
        return output.read().strip()


ITSELF = """path link name descriptor at new_arguments fewer_arguments upgrade after_children
daemon early_daemon libc_daemon""".split()


@pytest.mark.parametrize("way", ITSELF)
def test_a_restart_in_place(way: str, restart: Path, preloaded: Preloaded) -> None:
    way = way.replace("_", " ")
    folder = str(restart.parent)
    env = {"WAY": way, "FOLDER": folder, "PATH": f"{folder}:{os.environ['PATH']}"}
    args: list[str | Path] = [restart, *(["serve"] if way != "upgrade" else [])]
    assert shown(preloaded, args, env) == f"7 {way}"
    if way not in ("after children", "upgrade"):  # which start others as well
        assert preloaded.logged() == []


@pytest.mark.parametrize("way", ["child", "vfork", "raw", "other_operand"])
def test_what_is_no_restart_in_place(way: str, restart: Path, preloaded: Preloaded) -> None:
    """A child, or another of the programs that are in one file."""
    way = way.replace("_", " ")
    assert shown(preloaded, [restart, "serve"], {"WAY": way}) == way
    assert [(number, command) for number, _, command in preloaded.logged()] == [(7, str(restart))]


def test_another_restart(restart: Path, preloaded: Preloaded) -> None:
    """It then has been given the descriptor: its children do not get it, and itself does."""
    script = f"exec {restart} 7</etc/passwd"
    assert shown(preloaded, ["sh", "-c", script], {"WAY": "after children"}) == "7 after children"
    assert {number for number, _, _ in preloaded.logged()} == {7}


# --- interpreters ----------------------------------------------------------------------------

SERVER = """
import os, sys
if "RESTARTED" in os.environ:
    print(*(fd for fd in range(3, 99) if os.path.exists(f"/proc/self/fd/{fd}")))
else:
    os.environ["RESTARTED"] = "1"
    os.dup2(0, 70)  # inheritable
    HOW
"""
AGAIN = "os.execv(sys.executable, [sys.executable, *sys.argv])"
WITH_MODULE = "os.execv(sys.executable, [sys.executable, '-m', 'shop.server', *sys.argv[1:]])"
SCRIPT = "os.execv(sys.argv[0], sys.argv)"
MORE = "os.execv(sys.executable, [sys.executable, *sys.argv, '--resume', '12'])"
ABSOLUTE = (
    "os.chdir('/'); os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), 'x'])"
)
ORIGINAL = "os.execv(sys.executable, sys.orig_argv)"
OTHER = "os.execv(sys.executable, [sys.executable, '-u', 'other.py'])"
WRAPPED = "os.execv(sys.executable, [sys.executable, 'shop/server.py'])"


@pytest.mark.parametrize(
    ("command", "how", "passes"),
    [
        ("PYTHON shop/server.py", AGAIN, True),
        ("PYTHON shop/server.py --port 80", MORE, True),
        ("PYTHON -X utf8 -u shop/server.py serve", AGAIN, True),
        ("PYTHON -X utf8 shop/server.py serve", ORIGINAL, True),
        ("PYTHON ./shop/server.py", ABSOLUTE, True),
        ("PYTHON -m shop.server 80", AGAIN, True),
        ("PYTHON -m shop", AGAIN, True),
        ("PYTHON -m shop.server 80", WITH_MODULE, True),
        ("shop/server.py 80", SCRIPT, True),  # through env(1)
        ("shop/server.py 80", AGAIN, True),
        ("shop/direct.py 80", SCRIPT, True),
        ("PYTHON shop/server.py", OTHER, False),
        ("PYTHON -m shop.server 80", OTHER, False),
        ("PYTHON -m shop.launcher shop/server.py", WRAPPED, False),
        ("PYTHON shop/launcher.py shop/server.py", WRAPPED, False),
        ("PYTHON shop/server.py", "os.execv('other.py', ['other.py'])", False),
    ],
)
def test_a_script(command: str, how: str, passes: bool, preloaded: Preloaded) -> None:
    folder = preloaded.log.parent
    (folder / "shop").mkdir()
    text = "#!/usr/bin/env python3\n" + SERVER.replace("HOW", how)
    for name in "server", "launcher", "__main__", "../other":
        file = folder / "shop" / f"{name}.py"
        file.write_text(text)
        file.chmod(0o755)
    python = Path(sys.executable)
    shutil.copy(folder / "shop" / "server.py", folder / "shop" / "direct.py")
    (folder / "shop" / "direct.py").write_text(text.replace("/usr/bin/env python3", str(python)))
    args = [word.replace("PYTHON", str(python)) for word in command.split()]
    env = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    assert shown(preloaded, args, env) == ("70" if passes else "")
    assert [number for number, _, _ in preloaded.logged()] == [70] * (not passes)
