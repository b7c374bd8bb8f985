"""The real command in real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pyforkfd as ff

COMMAND = [sys.executable, "-I", "-m", "pyforkfd"]
DOCTOR = shlex.join([*COMMAND, "doctor"])


def run(*args: str, code: int = 0, errors: str = "") -> str:
    """Run the command, and return its output; exit code and errors must be these."""
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, errors), done
    return done.stdout


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def bash(line: str) -> tuple[int, str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout


# The command line itself.


def test_the_console_script_and_the_module_are_one() -> None:
    script = Path(sys.executable).parent / "pyforkfd"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pyforkfd {ff.__version__}\n" == run("--version")


def test_help_names_the_commands_and_imports_none() -> None:
    code = """
import sys
from pyforkfd import cli
try:
    cli.main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert not [name for name in sys.modules if "doctor" in name], sys.modules
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ +doctor +\S", done.stdout, re.M)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["surgeon"],
        ["doctor", "--nonsense"],
        ["doctor", "me"],
        ["doctor", "1", "2"],
        ["doctor", "-5"],
        ["doctor", str(2**40)],
        ["doctor", "why"],
        ["doctor", "why", "x"],
        ["doctor", "why", str(2**40)],
        ["doctor", "why", "7", "--markdown"],
        ["doctor", "1", "--markdown"],
        ["doctor", "1", "--try"],
        ["doctor", "--", "cat"],
        ["doctor", "--json", "--markdown"],
    ],
    ids=" ".join,
)
def test_bad_usage(args: list[str]) -> None:
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    output = done.stderr.splitlines()
    assert output[-1].startswith("pyforkfd") and "Traceback" not in done.stderr
    assert len(output) == 1 or output[0].startswith("usage: ")


def test_errors_are_one_line() -> None:
    with ff.spawn(["true"]) as ended:
        pid = ended.pid
    output = f"pyforkfd doctor: [Errno 3] descriptors of process {pid}: No such process\n"
    assert run("doctor", str(pid), code=2, errors=output) == ""


def test_a_reader_that_has_gone() -> None:
    code, output = bash(f"set -o pipefail; {DOCTOR} | head -n 1")
    assert output.startswith("pyforkfd ") and output.count("\n") == 1
    assert code in (0, 2), "whether all was written before head went"


# doctor


def test_the_doctor_reports_to_programs() -> None:
    report = json.loads(run("doctor", "--json"))
    assert report["pyforkfd"] == ff.__version__ and report["kernel"] == os.uname().release
    verdicts = {outcome["name"]: outcome["verdict"] for outcome in report["experiments"]}
    assert len(verdicts) > 60
    assert {n for n, v in verdicts.items() if v != "confirmed"} <= {"marks-timerfd"}
    assert {"name", "present", "errno", "seen", "without"} <= report["features"][0].keys()
    assert {setting["name"] for setting in report["settings"]} >= {"vm.overcommit_memory"}


def test_the_doctor_reports_to_people() -> None:
    output = run("doctor")
    assert re.search(r"^clone3\(2\) +5\.3 +(yes|no) ", output, re.M)
    assert re.search(r"^confirmed +exec closes the descriptors marked", output, re.M)
    assert re.search(r"^\d+ statements: \d+ confirmed(, 1 impossible)?$", output, re.M)


BROKEN = """
import os, sys
from pyforkfd import cli
dup = os.dup
def without_mark(fd):
    made = dup(fd)
    os.set_inheritable(made, True)
    return made
os.dup = without_mark
sys.exit(cli.main(["doctor", *sys.argv[1:]]))
"""


def test_a_contradiction_is_an_exit_code() -> None:
    """In a Python whose os.dup() does not mark."""
    done = python(BROKEN)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(
        r"^contradicted +`os\.dup\(\)` marks FD_CLOEXEC .* not marked$", done.stdout, re.M
    )
    done = python(BROKEN, "--json")
    assert done.returncode == 1
    bad = [o["name"] for o in json.loads(done.stdout)["experiments"] if o["verdict"] != "confirmed"]
    assert set(bad) - {"marks-timerfd"} == {"marks-dup", "duplicates-have-their-own-mark"}


def on_a_terminal(*args: str, columns: int) -> list[str]:
    """Run Python with these arguments on a terminal, and return its lines."""
    controller, terminal = os.openpty()
    with ff.Fd(controller), ff.Fd(terminal):
        env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
        fds = dict.fromkeys((0, 1, 2), terminal)
        output = b""
        with ff.spawn([sys.executable, "-I", *args], fds=fds, env=env) as child:
            while child.poll() is None or select.select([controller], [], [], 0)[0]:
                if controller in select.select([controller, child.pidfd], [], [])[0]:
                    output += os.read(controller, 65536)
    return output.decode().split("\r\n")


def test_tables_on_a_terminal() -> None:
    if importlib.util.find_spec("rich") is None:
        assert not os.environ.get("CI"), "the test extra installs it"
        pytest.skip("no rich, of the cli extra")
    output = "\n".join(on_a_terminal("-m", "pyforkfd", "doctor", columns=120))
    assert "┃" in output and "\x1b[32mconfirmed" in output


def test_tables_on_a_terminal_without_rich() -> None:
    code = """
import sys
sys.modules["rich"] = sys.modules["rich.console"] = None
from pyforkfd import cli
sys.exit(cli.main(["doctor"]))
"""
    about, *tables = on_a_terminal("-c", code, columns=90)
    assert about.startswith("pyforkfd ") and any(line.startswith("confirmed") for line in tables)
    assert not any("┃" in line or "\x1b" in line for line in tables)
    assert 80 < max(map(len, tables)) <= 90


# doctor PID


def test_a_process_with_a_problem() -> None:
    with ff.bind("tcp://127.0.0.1:0") as listener, ff.Fd(os.memfd_create("memory")) as memory:
        fds: dict[int, ff.FdSource] = {0: ff.PIPE, 1: ff.PIPE, 7: listener, 8: memory}
        with ff.spawn(["cat"], fds=fds) as child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(b"x")
            child.stdin.flush()
            child.stdout.read(1)
            output = run("doctor", str(child.pid), code=1)
            report = json.loads(run("doctor", str(child.pid), "--json", code=1))
    port = report["descriptors"][3]["details"]["local"][1]
    assert output.startswith(f"cat, process {child.pid}: 5 descriptors\n")
    assert re.search(
        rf"^7 +TCP 127\.0\.0\.1:{port}, listening, 0 of \d+ waiting +rw +passes +\S+ \(parent "
        rf"{os.getpid()}: \d+\)$",
        output,
        re.M,
    )
    assert f"no-close-on-exec: descriptor 7 (TCP 127.0.0.1:{port}" in output
    assert [row["number"] for row in report["descriptors"]] == [0, 1, 2, 7, 8]
    assert [problem["number"] for problem in report["problems"]] == [7, 8]
    assert [holder["pid"] for holder in report["holders"]["7"]] == [os.getpid()]


def test_a_process_without_problems() -> None:
    with ff.spawn(["cat"], fds={0: ff.PIPE, 1: ff.PIPE}) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.read(1)
        assert "\nno problems\n" in run("doctor", str(child.pid))
        assert json.loads(run("doctor", str(child.pid), "--json"))["problems"] == []


def test_the_doctor_itself_does_not_count() -> None:
    """It inherits what its shell has, and would be the unrelated program."""
    line = f"exec 7</dev/null 8> >(cat >/dev/null); {DOCTOR} $$; true"
    _, output = bash(line)
    (row,) = re.findall(r"^8 +pipe:.*$", output, re.M)
    assert "cat (" in row and "python" not in row


def test_names_with_escape_sequences(tmp_path: Path) -> None:
    path = tmp_path / "\x1b]0;title\x07\nname"
    path.write_text("")
    with open(path) as file, ff.inheriting(file):
        output = run("doctor", str(os.getpid()), code=1)
    assert "\x1b" not in output and "\\x1b]0;title\\x07\\nname" in output


# doctor why


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("exec 7</dev/null; @", True),
        ("@ 7</dev/null", True),
        ("@", False),
        ("exec 7</dev/null; @ 7<&-", False),
        ("exec 7</dev/null; exec 7<&-; @", False),
        ("exec 9</dev/null; @ 7<&9", True),
        ("exec 7</dev/null; ( @ )", True),
        ("exec 7</dev/null; exec @", True),
        ("{ @; } 7</dev/null", True),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_what_a_shell_passes(shell: str, line: str, has: bool) -> None:
    """The prediction is what a program in its place has."""
    with_doctor = line.replace("@", f"{DOCTOR} why 7 -- cat")
    done = subprocess.run([shell, "-c", with_doctor], capture_output=True, text=True, check=False)
    assert (done.returncode == 0, done.stderr) == (has, "")
    output = "cat would have descriptor 7" if has else "cat would NOT have descriptor 7"
    assert done.stdout.startswith(output)
    really = line.replace("@", "ls -d /proc/self/fd/7")
    seen = subprocess.run([shell, "-c", really], capture_output=True, check=False)
    assert (seen.returncode == 0) is has


def test_a_descriptor_of_the_doctors_own_is_none_of_the_shells() -> None:
    for number in range(3, 12):
        code, output = bash(f"{DOCTOR} why {number} -- cat")
        assert code == 1 and "the shell passes none of that number" in output, output


def test_why_is_tried_and_reported_to_programs() -> None:
    code, output = bash(f"exec 7</dev/null; {DOCTOR} why 7 --try --json -- cat -n --json")
    report = json.loads(output)
    assert code == 0 and report["command"] == ["cat", "-n", "--json"] and report["has"] is True
    assert "has the same file as its 7" in report["tried"]
    code, output = bash(f"{DOCTOR} why 7 --try")
    assert code == 1 and output.startswith("a program would NOT have") and "tried: " in output


def test_why_sees_the_environment() -> None:
    code, output = bash(f"LISTEN_FDS=2 LISTEN_PID=1 {DOCTOR} why 7 7</dev/null -- cat")
    assert code == 0
    assert "LISTEN_FDS=2 announces 3 to 4, not 7" in output and "LISTEN_PID=1 is not" in output
