"""``serve --check`` finds what ``serve`` would refuse, in the same words, and starts nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import needs_root
from services import free_port
from supervised import Supervised, toml

from pyforkfd.supervisor import Component, Control, Service
from pyforkfd.supervisor.commands._check import Check
from pyforkfd.supervisor.control import _path

PATIENCE = 60.0
WEB = "[components.web]\ncommand = ['/bin/sleep', '1000']\nreadiness = 'started'\ncgroup = 'off'\n"
HTTP = WEB + "listen = ['http']\n[listeners.http]\n"
PY = (
    "[components.py]\nreadiness = 'started'\ncgroup = 'off'\n"
    "restart = { max_restarts = 0, backoff = 0 }\n"
)
Z = PY + "function = 'fine:work'\nzygote = 'z'\n[zygotes.z]\n"
MODULES = {
    "fine": "import time\nsetting = 1\ndef work():\n    time.sleep(1000)\n",
    "raises": "raise RuntimeError('not today')\n",
    "leaves": "import os\nos._exit(3)\n",
    "exits": "raise SystemExit('bye')\n",
    "needs": "import no_such_package\n",
    "unfinished": "def work(:\n",
}

# What the specification refuses; DIR is the directory of the test.
SPECIFIED = {
    "syntax": "a = \n",
    "unfinished": WEB + "x = [1,\n",
    "no component": "name = 'shop'\n",
    "no such key": WEB + "worker = 3\n",
    "a key of another table": WEB + "user = 'root'\n",
    "a string for a number": WEB + "workers = '2'\n",
    "a number for a string": WEB + "cwd = 5\n",
    "a table for an array": WEB + "listen = {}\n",
    "a table for a number": WEB + "nice = {}\n",
    "no such choice": WEB + "stdout = 'nowhere'\n",
    "nested": WEB + "args = " + "[" * 5000 + "]" * 5000 + "\n",
    "5,000 digits": WEB + "workers = " + "9" * 5000 + "\n",
    "5,000 hexadecimal digits": WEB + "workers = 0x" + "f" * 5000 + "\n",
    "a key of 5,000 parts": WEB + "a." * 5000 + "b = 1\n",
    "many workers": WEB + "workers = 1_000_000_000\n",
    "many workers together": "workers = 3000\n".join([WEB, WEB.replace("web", "two"), ""]),
    "negative workers": WEB + "workers = -1\n",
    "a backlog": HTTP + "address = 'tcp://127.0.0.1:0'\nbacklog = 100_000_000_000\n",
    "an eternal heartbeat": WEB + "heartbeat = { stale_after = 1e300 }\n",
    "an infinite duration": WEB + "stop_timeout = inf\n",
    "no duration": WEB + "stop_timeout = nan\n",
    "a long duration": WEB + "drain_timeout = '400d'\n",
    "a size": WEB + "recycle = { memory = '9999999T' }\n",
    "a size beyond numbers": WEB + f"recycle = {{ memory = '{'9' * 400}T' }}\n",
    "restarts": WEB + "restart = { max_restarts = 1e9 }\n",
    "generations": "max_generations = 1_000_000\n" + WEB,
    "rotated files": WEB + "[log]\npath = 'DIR/log'\nkeep = 1_000_000_000\n",
    "a limit of a resource": WEB + "rlimits = { NOFILE = '99999999T' }\n",
    "no resource": WEB + "rlimits = { FILES = 3 }\n",
    "processors": WEB + "cpu_affinity = [100_000]\n",
    "a share": WEB + "recycle = { jitter = 1.5 }\n",
    "5,000 elements": f"{WEB}on_crash = {['a:b'] * 5000}\n",
    "a long text": WEB + f"env = {{ A = '{'x' * 140_000}' }}\n",
    "a null byte": WEB + 'env = { A = "a\\u0000b" }\n',
    "no program": WEB.replace("/bin/sleep", "/nowhere/sleep"),
    "no function": PY + "function = 'fine'\n",
    "both": WEB + "function = 'fine:work'\n",
    "neither": "[components.web]\nreadiness = 'started'\n",
    "no directory": WEB + "cwd = '/nowhere'\n",
    "no user": WEB + "privileges = { user = 'nobody-here' }\n",
    "no group": WEB + "privileges = { group = 'nobody-here' }\n",
    "an id": WEB + "privileges = { user = 99_999_999_999 }\n",
    "no capability": WEB + "privileges = { capabilities = ['FLY'] }\n",
    "no filter": WEB + "privileges = { seccomp = '/nowhere' }\n",
    "a filter that is a pipe": WEB + "privileges = { seccomp = 'DIR/pipe' }\n",
    "no root": WEB + "privileges = { chroot = '/nowhere' }\n",
    "no signal": WEB + "stop_signal = 'SIGNONE'\n",
    "a signal that nobody catches": WEB + "stop_signal = 'KILL'\n",
    "no such listener": WEB + "listen = ['htpp']\n",
    "no such zygote": PY + "function = 'fine:work'\nzygote = 'pi'\n",
    "a listener that nobody uses": WEB + "[listeners.http]\naddress = 'tcp://127.0.0.1:0'\n",
    "no scheme": HTTP + "address = '127.0.0.1:80'\n",
    "no port": HTTP + "address = 'tcp://127.0.0.1'\n",
    "a port of 5,000 digits": HTTP + f"address = 'tcp://:{'9' * 5000}'\n",
    "a long path": HTTP + f"address = 'unix:/{'x' * 200}'\n",
    "a relative path": HTTP + "address = 'unix:x'\n",
    "the directory of a path": HTTP + "address = 'unix:/nowhere/x'\n",
    "no name": WEB.replace("web", "'a b'"),
    "no name of the service": "name = '/'\n" + WEB,
    "the directory of the log": WEB + "[log]\npath = '/nowhere/log'\n",
    "a log that is a directory": WEB + "[log]\npath = 'DIR'\n",
    "no sink": WEB + "[log]\nstdout = false\n",
    "an address of Loki": WEB + "[log.loki]\nurl = 'loki:3100'\n",
    "the directory of metrics": WEB + "[metrics]\naddress = 'unix:/nowhere/x'\n",
    "the name of a text file": WEB + "[metrics]\ntextfile = 'DIR/metrics'\n",
    "a user of the socket": WEB + "[control]\npath = 'DIR/c'\nallow_users = ['nobody-here']\n",
    "an id of the socket": WEB + "[control]\npath = 'DIR/c'\nallow_users = [-5]\n",
    "one address twice": HTTP + "address = 'tcp://:1'\n[metrics]\naddress = 'tcp://127.0.0.1:1'\n",
}
# What the machine refuses: a service that is not started, exit code 2.
REFUSED = {
    "a port in use": HTTP + "address = 'tcp://127.0.0.1:PORT'\n",
    "a port in use, of all addresses": HTTP + "address = 'tcp://:PORT'\n",
    "a shard of a port in use": HTTP + "address = 'tcp://127.0.0.1:PORT'\nshards = true\n",
    "a port of datagrams in use": HTTP + "address = 'udp://127.0.0.1:PORT'\n",
    "no address of this machine": HTTP + "address = 'tcp://192.0.2.1:80'\n",
    "no such host": HTTP + "address = 'tcp://nowhere.invalid:80'\n",
    "no host name": HTTP + "address = 'tcp://☃..a:80'\n",
    "a path in use": HTTP + "address = 'unix:DIR/socket'\n",
    "a path of something else": HTTP + "address = 'unix:DIR/file'\n",
    "an abstract name in use": HTTP + "address = 'unix:@DIR'\n",
    "metrics on a port in use": WEB + "[metrics]\naddress = 'tcp://127.0.0.1:PORT'\n",
    "metrics on a path in use": WEB + "[metrics]\naddress = 'unix:DIR/socket'\n",
    "a log that is a pipe": WEB + "[log]\npath = 'DIR/pipe'\n",
    "a log that is a device": WEB + "[log]\npath = '/dev/null'\n",
}
# What no worker survives: the service gives up, exit code 1.
GIVEN_UP = {
    "no such module": PY + "function = 'no_such_module.app:work'\n",
    "no such function": PY + "function = 'fine:play'\n",
    "no function at all": PY + "function = 'fine:setting'\n",
    "a module that raises": PY + "function = 'raises:work'\n",
    "a module that exits": PY + "function = 'exits:work'\n",
    "a module that needs another": PY + "function = 'needs:work'\n",
    "a module with a fault": PY + "function = 'unfinished:work'\n",
    "no such module of a zygote": Z + "preload = ['fine', 'no_such_module']\n",
    "no such setup of a zygote": Z + "preload = ['fine']\nsetup = 'fine:play'\n",
}
RIGHT = {
    "a program": WEB,
    "a listener": HTTP + "address = 'tcp://127.0.0.1:0'\n",
    "shards": HTTP + "address = 'tcp://127.0.0.1:0'\nshards = true\n",
    "a path": HTTP + "address = 'unix:DIR/new'\n",
    "a path that was left": HTTP + "address = 'unix:DIR/stale'\n",
    "an abstract name": HTTP + "address = 'unix:@DIR-new'\n",
    "metrics": WEB + "[metrics]\naddress = 'tcp://127.0.0.1:0'\n",
    "a new log": WEB + "[log]\npath = 'DIR/log'\n",
    "a log": WEB + "[log]\npath = 'DIR/file'\n",
    "a function": Z + "preload = ['fine']\n",
    "a hook that fails": WEB + "on_crash = ['no_such_module:x']\n",
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with a taken port (in the file ``port``), paths and modules."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        datagrams.bind(taken.getsockname())
        for path in (tmp_path / "socket", tmp_path / "stale", f"\0{tmp_path}"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(path))
            sock.listen()
            if path == tmp_path / "stale":
                sock.close()
        (tmp_path / "port").write_text(str(taken.getsockname()[1]))
        yield tmp_path


def write(place: Path, text: str) -> Path:
    port = (place / "port").read_text()
    path = place / "service.toml"
    path.write_text(text.replace("DIR", str(place)).replace("PORT", port))
    return path


def serve(path: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "pyforkfd", "serve", *words, str(path)]
    return subprocess.Popen(
        command,
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(path.parent), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def both(place: Path, path: Path, **env: str) -> tuple[tuple[int, str], tuple[int, str]]:
    """Check a file and serve it: exit code and output of each."""
    control = f"--control={place}/control"
    checked = outcome(serve(path, "--check", control, **env))
    return checked, outcome(serve(path, control, **env))


def texts(output: str, path: Path) -> list[str]:
    """The problems of --check, without their places."""
    found = re.findall(rf"^{re.escape(str(path))}:(?:\d+:)? (?!warning: )\S+: (.*)$", output, re.M)
    assert found, output
    return found


@pytest.mark.parametrize("text", SPECIFIED.values(), ids=SPECIFIED)
def test_what_the_specification_refuses(text: str, place: Path) -> None:
    (code, said), served = both(place, write(place, text))
    assert code == 2, said
    assert served == (code, said)
    assert "Traceback" not in said
    assert said.startswith(str(place))


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_the_machine_refuses(text: str, place: Path) -> None:
    path = write(place, text)
    (code, said), (served, output) = both(place, path)
    assert (code, served) == (2, 2), said + output
    (problem,) = texts(said, path)
    assert problem in output
    assert "Traceback" not in said + output
    assert not (place / "log").exists()


@pytest.mark.parametrize("text", GIVEN_UP.values(), ids=GIVEN_UP)
def test_what_no_worker_survives(text: str, place: Path) -> None:
    path = write(place, text)
    (code, said), (served, output) = both(place, path)
    assert (code, served) == (2, 1), said + output
    (problem,) = texts(said, path)
    cause = problem.partition(": ")[2]
    assert cause
    assert cause in output


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_served(text: str, place: Path) -> None:
    path = write(place, text)
    before = sorted(one.name for one in place.iterdir())
    code, said = outcome(serve(path, "--check", f"--control={place}/control"))
    assert (code, said.splitlines()[-1]) == (0, f"{path}: service service has no problem")
    here = [one.name for one in place.iterdir() if one.name != "__pycache__"]
    assert sorted(here) == before, "a check leaves nothing"
    with Supervised(place, path.read_text(), env={"PYTHONPATH": str(place)}) as service:
        service.until("^ready: ")


def test_a_hook_that_cannot_be_imported_is_a_warning(place: Path) -> None:
    path = write(place, RIGHT["a hook that fails"])
    _, said = outcome(serve(path, "--check"))
    assert (
        f'{path}: warning: components.web.on_crash.0: "no_such_module:x": ModuleNotFoundError: '
    ) in said


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [
        (0o666, 0, "everybody may write to it: chmod go-w"),
        (0o664, 0, "group nogroup may write to it: chmod go-w"),
        (0o644, 65534, "is user nobody's, who may write to it: chown root"),
        (0o644, 0, ""),
    ],
)
def test_a_configuration_that_others_may_write_is_a_warning(
    place: Path, mode: int, owner: int, why: str
) -> None:
    """In the log of a supervisor of root, at its start and at each reload, and by --check."""
    path = write(place, RIGHT["a new log"])
    with Supervised(place, path.read_text()) as service:
        service.until("^ready")
        path.chmod(mode)
        os.chown(path, owner, 65534)
        assert service.command("reload").returncode == 0
    log, errors = (place / "log").read_text(), service.log.text()
    assert log.count(f"configuration: {path}: {why}" if why else "configuration:") == bool(why)
    assert errors.count(f"configuration: {path}: {why}" if why else "configuration:") == bool(why)
    code, said = outcome(serve(path, "--check"))
    assert code == 0
    assert (f"{path}: warning: {path}: {why}; what it says" in said) == bool(why)
    (place / "log").unlink()
    process = serve(path, f"--control={place}/control")
    end = time.monotonic() + PATIENCE
    while not (place / "log").exists() or "ready after" not in (place / "log").read_text():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert outcome(process)[0] == 0
    assert ("configuration: " in (place / "log").read_text()) == bool(why)


@needs_root
def test_a_configuration_in_another_users_directory_is_a_warning(place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    path = theirs / "service.toml"
    path.write_text("app_dir = '/usr'\n" + WEB)
    os.chown(theirs, 65534, 65534)
    code, said = outcome(serve(path, "--check"))
    assert code == 0
    assert f"warning: {theirs}: this directory is user nobody's, who could replace ser" in said
    path.rename(place / "moved.toml")
    theirs.rmdir()


def test_all_problems_at_once(place: Path) -> None:
    text = (
        HTTP
        + "address = 'tcp://127.0.0.1:PORT'\n"
        + PY
        + "function = 'raises:work'\nworkers = -1\n[log]\npath = 'DIR/pipe'\n"
    )
    path = write(place, text)
    code, said = outcome(serve(path, "--check"))
    assert code == 2
    assert re.findall(r"^\S+:(\d+): (\S+):", said, re.M) == [
        ("7", "listeners.http.address"),
        ("12", "components.py.function"),
        ("13", "components.py.workers"),
        ("15", "log.path"),
    ]


WHERE = {
    "nothing": (lambda path: None, "No such file or directory"),
    "a directory": (Path.mkdir, "is a directory; write the path of a regular file"),
    "a pipe": (os.mkfifo, "is a pipe; write the path of a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a character device; write the"),
    "not text": (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
    "a null byte": (lambda path: path.write_bytes(WEB.encode() + b"\0"), "line|column"),
    "too long": (lambda path: path.write_bytes(b"#" * 300_000), "has more than 262144 bytes"),
}


@pytest.mark.parametrize(("make", "why"), WHERE.values(), ids=WHERE)
def test_a_place_that_is_no_configuration(make: object, why: str, place: Path) -> None:
    assert callable(make)
    path = place / "service.toml"
    make(path)
    checked, served = both(place, path)
    assert checked == served
    assert checked[0] == 2
    assert re.search(why, checked[1])
    assert "Traceback" not in checked[1]


def test_a_missing_extra(place: Path) -> None:
    (place / "prometheus_client").mkdir()
    (place / "prometheus_client/__init__.py").write_text("")  # as one that is too old
    path = write(place, RIGHT["metrics"])
    (code, said), (served, output) = both(place, path)
    assert (code, served) == (2, 2), said + output
    (problem,) = texts(said, path)
    assert "pip install 'pyforkfd[metrics]'" in problem
    assert problem in output
    assert "Traceback" not in output


def test_a_control_socket_that_cannot_be(place: Path) -> None:
    path = write(place, WEB)
    for name, why in {
        "file": "Address already in use",
        "socket": "Address already in use",
        "x" * 200: "the path is too long",
    }.items():
        control = f"--control={place / name}"
        code, said = outcome(serve(path, "--check", control))
        served, output = outcome(serve(path, control))
        assert (code, served) == (2, 2), (name, said, output)
        assert why in said
        assert why in output


def test_a_directory_for_sockets_that_is_too_long(place: Path) -> None:
    long = place / ("x" * 100)
    long.mkdir()
    path = write(place, WEB)
    (code, said), (served, output) = both(place, path, TMPDIR=str(long))
    assert (code, served) == (2, 2), said + output
    (problem,) = texts(said, path)
    assert problem in output


def test_a_module_that_never_returns(place: Path) -> None:
    (place / "hangs.py").write_text(
        "import os, subprocess, sys, time\nprint('noise', flush=True)\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\ntime.sleep(1000)\n"
    )
    path = write(place, PY + "function = 'hangs:work'\nboot_timeout = 1\n")
    begin = time.monotonic()
    code, said = outcome(serve(path, "--check"))
    assert code == 2
    assert '"hangs": not imported within 1 s' in said
    assert "noise" not in said
    assert time.monotonic() - begin < PATIENCE / 2
    for pid in map(int, (place / "pids").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            assert "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_module_of_the_directory_does_not_pass_for_one_of_python(place: Path) -> None:
    (place / "json.py").write_text("open('planted', 'w').close()\nimport nothing_at_all\n")
    (place / "else").mkdir()
    program = place / "else/program.py"  # whose directory is sys.path[0], not the current one
    program.write_text("import sys\nfrom pyforkfd.cli import main\nsys.exit(main())\n")
    path = write(place, RIGHT["a function"]).rename(place / "else/service.toml")
    done = subprocess.run(
        [sys.executable, program, "serve", "--check", path],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert '"fine": ModuleNotFoundError' in done.stderr
    assert not (place / "planted").exists()


def test_a_service_that_runs_is_checked_for_its_reload(tmp_path: Path) -> None:
    port = free_port()
    with (
        Supervised(tmp_path, toml(port) + "[metrics]\naddress = 'unix:" + f"{tmp_path}/m'\n") as it,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        it.until("^ready: web 2/2")
        control = f"--control={it.control}"
        code, said = outcome(serve(it.config, "--check", control))
        assert code == 0 and said.endswith(f"\n{it.config}: service service has no problem\n")
        with it.client() as client:
            addresses = client.request("status")["status"]["addresses"]
        assert addresses == [f"tcp://127.0.0.1:{port}", f"unix:{tmp_path}/m"]
        it.config.write_text(toml(other.getsockname()[1]))
        code, said = outcome(serve(it.config, "--check", control))
        assert code == 2
        done = it.command("reload")
        assert done.returncode == 1
        assert texts(said, it.config)[0] in done.stderr
        it.config.write_text('name = "another"\n' + toml(port))
        code, said = outcome(serve(it.config, "--check", control))
        assert code == 2
        assert len(texts(said, it.config)) == 2  # the socket and the port


def test_the_usual_directory_of_control_sockets_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine where no service has run yet: the start makes it."""
    component = Component(name="a", command=("true",))

    def problems(allowed: str) -> list[tuple[object, ...]]:
        control = Control(allow_users=(allowed,))
        service = Service(name="s", components={"a": component}, control=control)
        return [problem.place for problem in Check(None)(service)]

    monkeypatch.setattr(_path, "_SYSTEM", str(tmp_path / "pyforkfd"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert problems("root") == []
    assert problems("nobody-of-that-name") == [("control", "allow_users", 0)]
    monkeypatch.setattr(_path, "_SYSTEM", str(tmp_path / "none" / "pyforkfd"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    assert problems("root") == [("control", "path")]
