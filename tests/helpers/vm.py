"""A virtual machine with a whole cgroup v2 tree, in which pytest runs: user-mode Linux.

The machine needs no privileges, no KVM and no image: its root is the host's, read-only, so it
runs the same interpreter and package as this process.  It boots in about two seconds.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools import tool

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MEMORY = 1 << 30
PATIENCE = 180  # seconds; a machine that hangs is a failure, a busy host is not


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case of a test."""

    case: str
    kind: str  # passed, failure, error, skipped
    text: str


@dataclass(frozen=True)
class Run:
    """A run of pytest: its outcomes by "file::function", and the end of its output."""

    outcomes: dict[str, list[Outcome]]
    log: str


def run_pytest(files: Sequence[Path]) -> Run:
    """Run these files in a machine of their own, or skip with the name of the missing package."""
    if platform.machine() != "x86_64":
        pytest.skip("user-mode Linux is made for x86-64 alone")
    if "san.so" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the interpreter of the machine has no sanitizer's runtime")
    machine = tool("linux.uml", "user-mode-linux", ".ci/install-vm")
    with _scratch() as scratch:
        out = scratch / "out"
        out.mkdir()
        preload = scratch / "ptrace.so"
        command: list[str | Path] = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, "-o", preload, HERE / "vm_ptrace.c"], check=True)
        words = [sys.executable, "-P", "-m", "pytest", "-q", "--durations=5", *map(str, files)]
        words += ["--junit-xml=/run/out/junit.xml", "--timeout=150"]
        words += ["-p", "no:cacheprovider"]  # the root is read-only
        (out / "command").write_text(
            f"cd {shlex.quote(str(ROOT))} && PYTHONDONTWRITEBYTECODE=1 {shlex.join(words)}\n"
        )
        console = _boot(machine, scratch, preload, out)
        log = "\n".join((console + _text(out / "log")).splitlines()[-60:])
        if not (out / "junit.xml").exists():
            pytest.fail(f"the machine ran no tests:\n{log}", pytrace=False)
        return Run(_outcomes(out / "junit.xml"), log)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory for the machine's memory: on a tmpfs if that is large enough."""
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    fits = [place for place in places if place.is_dir() and _is_large_enough(place)]
    with tempfile.TemporaryDirectory(prefix="pyforkfd-vm-", dir=(fits or places)[0]) as name:
        yield Path(name)


def _is_large_enough(place: Path) -> bool:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize > MEMORY and not found.f_flag & os.ST_NOEXEC


def _boot(machine: str, scratch: Path, preload: Path, out: Path) -> str:
    """Boot, wait for the end, and return the output of the console."""
    kernel = [f"mem={MEMORY >> 20}M", f"uml_dir={scratch}/", "rootfstype=hostfs"]
    kernel += ["rootflags=/", "ro"]
    init = [f"init={HERE / 'vm_init.sh'}", f"OUT={out}"]
    console = ["con=null", "con0=null,fd:1", "quiet", "loglevel=3"]
    with subprocess.Popen(
        [machine, *kernel, *init, *console],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(scratch), "LD_PRELOAD": str(preload)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its processes are processes here too
    ) as running:
        try:
            console_text, _ = running.communicate(timeout=PATIENCE)
        except BaseException as error:
            os.killpg(running.pid, signal.SIGKILL)
            console_text, _ = running.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            console_text += f"the machine ran for more than {PATIENCE} s\n"
    return console_text


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _outcomes(junit: Path) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = case.attrib["name"]
        file = case.attrib["classname"].rpartition(".")[2]
        outcome = Outcome(name, "passed", "")
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                text = f"{child.attrib.get('message', '')}\n{child.text or ''}"
                outcome = Outcome(name, child.tag, text)
        found.setdefault(f"{file}::{name.partition('[')[0]}", []).append(outcome)
    return found
