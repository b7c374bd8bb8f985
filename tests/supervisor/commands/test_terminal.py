"""What workers write, on the operator's terminal: escaped, and where the operator looks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import Supervised

from pyforkfd.supervisor.commands._commands import _escaped

PROGRAM = """
import os, socket, sys, time
if len(sys.argv) > 1:
    print("first", file=sys.stderr)
    raise SystemExit("no database at \\x1b[31mdb\\x9b")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect(os.environ["NOTIFY_SOCKET"])
    sock.send("STATUS=at \\x1b]0;owned\\x07 \\x9b2J".encode())
    sock.send(b"READY=1")
print("out \\x1b[2J \\x9b2J", flush=True)
time.sleep(1000)
"""


def serve(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "pyforkfd", "serve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def text(program: Path, *words: str, more: str = "") -> str:
    command = json.dumps([sys.executable, str(program), *words])
    return f'name = "s"\n[components.web]\ncommand = {command}\ncgroup = "off"\n{more}\n'


def test_a_terminal_obeys_no_worker(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with Supervised(tmp_path, text(program)) as service:
        service.until("^ready")
        service.log.wait_for("out")
        shown = service.command("status").stdout
        assert r"at \x1b]0;owned\x07 \x9b2J" in shown
        assert shown.replace("\n", "").isprintable()
        logs = service.command("logs").stdout
        assert logs.replace("\n", "").isprintable()
        messages = [json.loads(line)["message"] for line in logs.splitlines()]
        assert "out \x1b[2J \x9b2J" in messages  # for programs the text is the same

        service.config.write_text(text(program, "fails"))
        done = service.command("reload")
        assert done.returncode == 1
        head, title, *lines = done.stderr.splitlines()
        assert "web: worker 2: exit: " in head
        assert title == "last lines of worker 2:"
        assert lines == ["    first", r"    no database at \x1b[31mdb\x9b"]


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_terminal_obeys_no_configuration(tmp_path: Path, check: list[str]) -> None:
    config = tmp_path / "s.toml"
    config.write_text('[components."\\u001b[2J"]\ncommand = []\n["\\u009b2J"]\n')
    done = serve(*check, str(config))
    assert done.returncode == 2
    assert done.stderr.replace("\n", "").isprintable() and r"\x1b[2J" in done.stderr


def test_a_terminal_obeys_no_argument() -> None:
    one = "\x1b[2J=tcp://127.0.0.1:0"
    done = serve("--listen", one, "--listen", one, "--", "true")
    assert done.returncode == 2
    error = r"pyforkfd serve: --listen: two listeners have the name \x1b[2J; "
    assert done.stderr.startswith(error), done


def test_a_worker_without_captured_output_adds_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with Supervised(tmp_path, text(program)) as service:
        service.until("^ready")
        service.config.write_text(text(program, "fails", more='stdout = "null"\nstderr = "null"'))
        (line,) = service.command("reload").stderr.splitlines()
        assert "worker 2: exit" in line


def test_what_is_escaped_in_json_is_the_same_value() -> None:
    value = "\x7f\x9b\u202e\U000e0001\u00e4"
    line = _escaped(json.dumps(value, ensure_ascii=False))
    assert line.isprintable() and json.loads(line) == value and "\u00e4" in line
