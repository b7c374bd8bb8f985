"""``pyforkfd serve`` and the commands that talk to it, as people and service managers use them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from leaks import gone
from processes import children
from services import free_port
from supervised import SERVER, Load, Supervised, fetch, toml
from tools import tool

FUNCTION = """
import os
import pyforkfd as ff

def serve() -> None:
    (given,) = ff.listen_fds()
    with given.listener() as listener:
        ff.notify(ready=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(f"function {os.getpid()}".encode())
"""
FIRST_OF_A_NAMESPACE = ["--pid", "--fork", "--kill-child", "--mount-proc"]
FOSTER = f"""
import os, sys
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while os.getppid() != 1:
            os.sched_yield()
        os.write(writer, b"adopted")
    os._exit(0)
os.wait()
os.close(writer)
assert os.read(reader, 100) == b"adopted" and os.read(reader, 100) == b""
os.execv(sys.executable, [sys.executable, "-S", {str(SERVER)!r}, "one"])
"""


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "pyforkfd", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def test_a_program_on_the_command_line(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["--listen", f"tcp://127.0.0.1:{port}", "--workers", "3", "--name", "shop", "--"]
    arguments += [sys.executable, "-S", str(SERVER), "one", "silent"]
    with Supervised(tmp_path, arguments=arguments) as service:
        service.until("^ready: shop 3/3")
        assert fetch(("127.0.0.1", port)).startswith("one ")
        assert service.command("reload").stdout == "generation 2 serves\n"
        done = service.command("stop")
        assert (done.returncode, done.stderr) == (0, "")
        assert service.wait() == 0
        line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z supervisor (INFO|WARNING|ERROR): \S.*"
        assert all(re.fullmatch(line, one) for one in service.log.text().splitlines())


def test_a_function_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "shop_front.py").write_text(FUNCTION)
    port = free_port()
    arguments = [f"--listen=http=tcp://127.0.0.1:{port}", "--readiness=notify"]
    arguments += ["--function=shop_front:serve", "--preload=shop_front", "--workers=2"]
    env = {"PYTHONPATH": str(tmp_path)}
    with Supervised(tmp_path, arguments=arguments, env=env) as service:
        service.until("^ready: shop_front 2/2")
        assert fetch(("127.0.0.1", port)).startswith("function ")


def test_a_reload_reads_the_file_again(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until("^ready: web 2/2")
        with Load(("127.0.0.1", port)) as load:
            service.config.write_text(
                toml(port, answer="two").replace("workers = 2", "workers = 3")
            )
            done = service.command("reload")
            assert (done.returncode, done.stdout) == (0, "generation 2 serves\n"), done.stderr
            load.more()
            service.config.write_text(toml(port, answer="three"))
            service.process.send_signal(signal.SIGHUP)
            service.until("^ready: web 2/2; generation 3")
            load.more()
        assert load.failures == []
        assert {answer.split()[0] for answer in load.answers} == {"one", "two", "three"}


def test_a_broken_file_changes_nothing_and_has_lines(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until("^ready: web 2/2")
        before = service.workers()
        text = toml(port).replace("workers = 2", "workers = 'many'\nlissen = []")
        service.config.write_text(text)
        done = service.command("reload")
        lines = text.splitlines()
        place = f"{service.config}:{lines.index('workers = ' + repr('many')) + 1}: components.web."
        assert done.returncode == 1 and place in done.stderr, done.stderr
        assert f"{service.config}:{lines.index('lissen = []') + 1}: " in done.stderr
        service.config.unlink()
        done = service.command("reload")
        assert done.returncode == 1 and "No such file" in done.stderr
        assert [one["pid"] for one in service.workers()] == [one["pid"] for one in before]
        done = service.command("reload", "keys")
        assert done.returncode == 1
        service.config.write_text(toml(port))
        done = service.command("reload", "keys")
        assert done.stderr == "pyforkfd reload: no component 'keys' (there are web)\n"
        assert service.command("reload", "web").returncode == 0


def test_check_prints_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(toml(8000))
    assert run("serve", "--check", str(path)).stdout == (f"{path}: service shop has no problem\n")
    path.write_text(toml(8000).replace("workers = 2", "workers = -2\nreadiness = 'now'"))
    done = run("serve", "--check", str(path))
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert re.match(rf"{path}:8: components\.web\.workers: ", first)
    assert re.match(rf"{path}:9: components\.web\.readiness: ", second)
    done = run("serve", str(path))
    assert done.returncode == 2 and done.stderr.splitlines() == [first, second]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "nothing to run, or two things; write CONFIG"),
        (["--check"], "--check needs a CONFIG"),
        (["--function=a.b:c", "--", "true"], "nothing to run, or two things; write CONFIG"),
        (["--preload=json", "--", "true"], "--preload needs --function"),
        (["x.toml", "--workers=2"], "--workers cannot be given beside CONFIG"),
        (["x.toml", "--", "true"], "a command cannot be given beside CONFIG"),
        (["/nonexistent.toml"], "No such file"),
        (
            ["--listen=a=unix:@a", "--listen=a=unix:@b", "--", "true"],
            "two listeners have the name a",
        ),
        (["--listen=8000", "--", "true"], "is not an address; write one of tcp://host:port"),
        (["--", "/nonexistent/program"], "/nonexistent/program"),
    ],
)
def test_bad_usage(words: list[str], why: str) -> None:
    done = run("serve", *words)
    assert done.returncode == 2 and why in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stderr.startswith("pyforkfd") or done.stderr.startswith("pyforkfd serve: ")


def test_an_address_in_use_starts_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Supervised(tmp_path, toml(taken.getsockname()[1])) as service:
            assert service.wait() == 2
            service.log.wait_for("Address already in use")


def test_status_for_people_and_programs(tmp_path: Path) -> None:
    with Supervised(tmp_path, toml(free_port())) as service:
        service.until("^ready: web 2/2")
        done = service.command("status")
        assert done.returncode == 0
        assert re.match(r"service: ready \(pid \d+, up .*, generation 1\)\n", done.stdout)
        assert re.search(r"^web +2/2 +1 +0 +-$", done.stdout, re.M)
        assert len(re.findall(r"^\d+ +web +[01] +\d+ +ready .* one$", done.stdout, re.M)) == 2
        state = json.loads(service.command("status", "--json").stdout)
        assert (state["service"], state["condition"]) == ("service", "ready")
        assert state["pid"] == service.process.pid


def test_status_of_a_degraded_service(tmp_path: Path) -> None:
    config = toml(free_port(), how=["breaks"], more="restart = { max_restarts = 0 }")
    config += "[components.other]\ncommand = ['sleep', '1000']\nreadiness = 'started'\n"
    with Supervised(tmp_path, config) as service:
        service.until("^degraded: web 0/2, other 1/1")
        done = service.command("status")
        assert done.returncode == 1
        given_up = r"web: more than 0 crashes within 60 s: [12] of 2 workers (is|are) given up; "
        assert re.search(given_up + r"(next try in \d+ s|being tried now)$", done.stdout, re.M)
        assert re.search(
            r"^web +0/2 +1 +\d +worker \d: exit, exit code 3 before", done.stdout, re.M
        )


def test_watching(tmp_path: Path) -> None:
    words = [sys.executable, "-P", "-m", "pyforkfd", "status", "--watch", "--control"]
    with Supervised(tmp_path, toml(free_port())) as service:
        service.until("^ready: web 2/2")
        watch = subprocess.Popen(
            [*words, str(service.control)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watch.stdout is not None
        seen = 0
        while seen < 2:
            seen += watch.stdout.readline().startswith("service: ready")
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=60)
        assert (watch.returncode, errors) == (130, "")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_watching_on_a_terminal_ends_with_the_service(term: str, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    words = [sys.executable, "-P", "-m", "pyforkfd", "status", "--watch", "--control"]
    with Supervised(tmp_path, toml(free_port())) as service:
        service.until("^ready: web 2/2")
        ours, theirs = pty.openpty()
        try:
            watch = subprocess.Popen(
                [*words, str(service.control)],
                env={**os.environ, "TERM": term},
                stdout=theirs,
                stderr=theirs,
            )
        finally:
            os.close(theirs)
        shown = b""
        try:
            while b"Workers" not in shown:
                shown += os.read(ours, 4096)
            assert ("┏".encode() in shown) is (term == "xterm")  # a table of rich's
            assert (b"\x1b" in shown) is (term == "xterm")
            service.command("stop")
            while True:
                try:
                    shown += os.read(ours, 4096)
                except OSError:  # EIO: no process has the other end
                    break
        finally:
            os.close(ours)
            code = watch.wait(60)
        assert code in (1, 2), shown
        assert service.wait() == 0


def test_stop_waits_for_requests(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service, socket.socket() as silent:
        service.until("^ready: web 2/2")
        silent.connect(("127.0.0.1", port))
        with ask_later(service, "stop") as patient:
            service.until("^stopping")
            silent.sendall(b"?")
            assert silent.recv(100).startswith(b"one ")  # the stop waits for it
            assert patient.wait(60) == 0
        assert service.wait() == 0


def test_stop_now_waits_for_no_request(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service, socket.socket() as silent:
        service.until("^ready: web 2/2")
        silent.connect(("127.0.0.1", port))
        assert service.command("stop", "--now").returncode == 0
        assert service.wait() == 0


def ask_later(service: Supervised, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pyforkfd", name, "--control", str(service.control)]
    )


def test_a_rollback(tmp_path: Path) -> None:
    port = free_port()
    config = toml(port, how=["speaks"], head="rollback = 600")
    with Supervised(tmp_path, config) as service:
        service.until("^ready: web 2/2")
        done = service.command("rollback")
        assert done.returncode == 1 and "no generation is paused" in done.stderr
        with Load(("127.0.0.1", port)) as load:
            service.config.write_text(
                toml(port, answer="two", how=["speaks"], head="rollback = 600")
            )
            assert service.command("reload").returncode == 0
            load.more()
            assert load.answers[-1].startswith("two")
            done = service.command("rollback")
            assert (done.returncode, done.stdout) == (0, "generation 1 serves again\n")
            load.more()
            assert load.answers[-1].startswith("one")
        assert load.failures == []


def test_the_last_lines_of_the_log(tmp_path: Path) -> None:
    with Supervised(tmp_path, toml(free_port())) as service:
        service.until("^ready: web 2/2")
        lines = service.command("logs").stdout.splitlines()
        messages = [json.loads(line)["message"] for line in lines]
        assert sum("ready after" in message for message in messages) == 2
        assert service.command("logs", "web").stdout == ""  # it has written nothing


def test_no_supervisor_listens(tmp_path: Path) -> None:
    done = run("status", "--control", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr == (
        f"pyforkfd status: [Errno 2] connect {tmp_path}/nothing: No such file or directory\n"
    )


# The service manager


def test_a_manager_that_does_not_read_blocks_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port), env={"WATCHDOG_USEC": "1000"}) as service:
        service.until("^ready: web 2/2")
        length = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        with service.client() as client:
            for _ in range(length + 10):  # each is a notification
                client.request("reload")
        last = length + 11
        service.until(f"generation {last}$")  # sent as soon as its queue has space


def test_notifications_to_the_manager(tmp_path: Path) -> None:
    port = free_port()
    env = {"WATCHDOG_USEC": "100000"}
    with Supervised(tmp_path, toml(port), env=env) as service:
        ready = service.notified(lambda message: message.get("READY"))
        assert ready["MAINPID"] == str(service.process.pid)
        for _ in range(5):
            service.notified(lambda message: message.get("WATCHDOG") == "1")
        service.manager.messages.clear()
        service.process.send_signal(signal.SIGHUP)
        reloading = service.notified(lambda message: message.get("RELOADING"))
        assert int(reloading["MONOTONIC_USEC"]) > 0
        service.notified(lambda message: message.get("READY"))
        assert not [m for m in service.manager.messages[:-1] if m.get("READY")]
        service.process.terminate()
        service.notified(lambda message: message.get("STOPPING"))
        assert service.wait() == 0


def test_a_watchdog_of_another_process_is_not_fed(tmp_path: Path) -> None:
    env = {"WATCHDOG_USEC": "2000", "WATCHDOG_PID": "1"}
    with Supervised(tmp_path, toml(free_port()), env=env) as service:
        service.until("^ready: web 2/2")
        service.process.terminate()
        service.notified(lambda message: message.get("STOPPING"))
        assert service.wait() == 0
        assert not [m for m in service.manager.messages if "WATCHDOG" in m]


def test_listeners_of_the_manager(tmp_path: Path) -> None:
    activate = tool("systemd-socket-activate", "systemd")
    port = free_port()
    config = toml(port).replace(f"tcp://127.0.0.1:{port}", "systemd:web")
    prefix = [activate, "-l", f"127.0.0.1:{port}", "--fdname=web", "-E", "NOTIFY_SOCKET"]
    with Supervised(tmp_path, config, prefix=prefix) as service:
        wait_until_bound(port)
        assert fetch(("127.0.0.1", port)).startswith("one ")  # it starts with the first client
        with Load(("127.0.0.1", port)) as load:
            load.more()
            assert service.command("reload").returncode == 0
            load.more()
        assert load.failures == []
        assert service.command("stop").returncode == 0
        assert service.wait() == 0


def test_listeners_of_the_manager_with_the_same_name(tmp_path: Path) -> None:
    activate = tool("systemd-socket-activate", "systemd")
    port = free_port()
    config = toml(port).replace(f"tcp://127.0.0.1:{port}", "systemd:web")
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"]
    prefix = [activate, *(f"--listen={address}" for address in addresses), "--fdname=web:web"]
    with Supervised(tmp_path, config, prefix=prefix) as service:
        wait_until_bound(port)
        with socket.create_connection(("127.0.0.1", port)):
            assert service.wait() == 2
        service.log.wait_for("several descriptors of the service manager are called web")


def wait_until_bound(port: int) -> None:
    listening = f"0100007F:{port:04X} 00000000:0000 0A"
    assert gone(lambda: listening in Path("/proc/net/tcp").read_text())


# Process 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace takes root")
def test_as_process_1_it_reaps_orphans_and_stops_everything(tmp_path: Path) -> None:
    unshare = tool("unshare", "util-linux")
    port = free_port()
    foster = tmp_path / "foster.py"
    foster.write_text(FOSTER)
    config = toml(port).replace(f"'-S', '{SERVER}', 'one'", f"'{foster}'")
    with Supervised(tmp_path, config, prefix=[unshare, *FIRST_OF_A_NAMESPACE]) as service:
        service.until("^ready: web 2/2")
        assert fetch(("127.0.0.1", port)).startswith("one ")
        (first,) = children(service.process.pid)
        assert gone(lambda: not zombies(first)), zombies(first)
        inside = children(first)
        assert len(inside) == 2
        os.kill(first, signal.SIGTERM)
        assert service.wait() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in inside)


def zombies(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        try:
            stat = Path(f"/proc/{child}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # reaped since
        if stat.rpartition(") ")[2].startswith("Z"):
            found.append(child)
    return found
