"""The loop with real processes: crashes, reloads and listeners under load."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from services import free_port
from supervised import SERVER, Load, Supervised, fetch, toml
from tools import tool

WEB = "web 2/2"


def answers(load: Load) -> set[str]:
    return {answer.split()[0] for answer in load.answers}


def test_killed_workers_fail_no_more_than_what_they_were_at(tmp_path: Path) -> None:
    port = free_port()
    kills = 6
    config = toml(port, more="restart = { max_restarts = 100 }")
    with Supervised(tmp_path, config) as service:
        service.until(f"^ready: {WEB}")
        with Load(("127.0.0.1", port)) as load:
            load.more()
            for _ in range(kills):
                victim = service.workers()[0]
                assert isinstance(victim["pid"], int)
                os.kill(victim["pid"], signal.SIGKILL)
                service.until("^degraded: web 1/2")
                service.until(f"^ready: {WEB}")
                load.more()
        assert len(load.failures) <= kills, load.failures  # each serves one at a time
        (web,) = service_components(service)
        assert web["crashes"] == kills
        last = web["last_death"]
        assert last["cause"] == "signal"
        assert "killed by SIGKILL" in last["detail"]


def service_components(service: Supervised) -> list[dict[str, Any]]:
    with service.client() as client:
        found: list[dict[str, Any]] = client.request("status")["status"]["components"]
    return found


def test_orders_that_cross_fail_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until(f"^ready: {WEB}")
        with Load(("127.0.0.1", port)) as load, service.client() as client:
            outcomes = []
            for count in (3, 1, 4, 2, 3, 2):
                reloads = [later(service, "reload") for _ in range(2)]
                client.request("scale", component="web", count=count)
                for worker in service.workers()[:1]:
                    later(service, "restart", str(worker["id"])).communicate()
                outcomes += [(*one.communicate(), one.returncode) for one in reloads]
                load.more()
        assert load.failures == []
        for text, why, code in outcomes:
            assert code == 0 or "another reload came before it was ready" in why, (text, why)
        assert sum(code == 0 for *_, code in outcomes) >= 6
        service.until(f"^ready: {WEB}")


def later(service: Supervised, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "pyforkfd", words[0], "--control", str(service.control)]
    return subprocess.Popen(
        [*command, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_last_order_ends_a_reload(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until(f"^ready: {WEB}")
        service.config.write_text(toml(port, how=["hangs"]))
        reload = later(service, "reload")
        service.until("^reloading")
        assert service.command("stop").returncode == 0
        _, why = reload.communicate()
        assert reload.returncode == 1 and "the supervisor is stopping" in why
        assert service.wait() == 0


def test_a_broken_deploy_changes_nothing_and_is_explained(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until(f"^ready: {WEB}")
        before = {worker["pid"] for worker in service.workers()}
        with Load(("127.0.0.1", port)) as load:
            service.config.write_text(toml(port, answer="two", how=["breaks"]))
            done = service.command("reload")
            assert done.returncode == 1
            assert re.fullmatch(
                r"pyforkfd reload: web: worker \d+: exit: exit code 3 before it was ready\n",
                done.stderr,
            )
            load.more()
        service.until(f"^ready: {WEB}; generation 2")
        assert load.failures == [] and answers(load) == {"one"}
        assert before <= {worker["pid"] for worker in service.workers()}


def test_what_cannot_be_started_is_explained(tmp_path: Path) -> None:
    port = free_port()
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n" + SERVER.read_text())
    program.chmod(0o755)
    config = toml(port).replace(sys.executable, str(program)).replace("'-S', ", "")
    config = config.replace(f"'{SERVER}', ", "")
    with Supervised(tmp_path, config) as service:
        service.until(f"^ready: {WEB}")
        program.write_text("#!/nonexistent/interpreter\n")
        done = service.command("reload")
        assert done.returncode == 1 and "spawn_failed" in done.stderr, done.stderr
        assert "program" in done.stderr and "No such file" in done.stderr
        assert fetch(("127.0.0.1", port)).startswith("one")


def test_nothing_that_lives_ends_it(tmp_path: Path) -> None:
    config = toml(
        free_port(),
        how=["breaks"],
        more="restart = { max_restarts = 2, backoff = 0.01 }",
    )
    with Supervised(tmp_path, config) as service:
        assert service.wait() == 1
        service.log.wait_for("no component can be kept running")


def test_a_worker_that_hangs_while_it_boots_shows_its_stack(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until(f"^ready: {WEB}")
        # Enough for a busy machine to import what it hangs in.
        service.config.write_text(toml(port, how=["hangs"], more="boot_timeout = 5"))
        done = service.command("reload")
        assert done.returncode == 1 and "not ready within 5 s" in done.stderr
        service.until(f"^ready: {WEB}")
        service.log.wait_for("in hang_in_here")  # by dump_signal alone


def test_workers_that_know_only_numbers(tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    config = toml(
        port,
        more='env = { FIRST = "5" }\ngive = "numbers"\nnumbers = { http = 5, more = 6 }',
    ).replace('["http"]', '["http", "more"]')
    config += f'[listeners.more]\naddress = "tcp://127.0.0.1:{other}"\n'
    with Supervised(tmp_path, config, env={"LISTEN_FDS": "2"}) as service:
        service.until(f"^ready: {WEB}")
        assert fetch(("127.0.0.1", port)).startswith("one")


def test_unix_and_udp(tmp_path: Path) -> None:
    port, udp = free_port(), free_port(socket.SOCK_DGRAM)
    path = str(tmp_path / "web.sock")
    config = toml(port).replace('["http"]', '["http", "local", "datagrams"]')
    config += f'[listeners.local]\naddress = "unix:{path}"\nmode = 0o600\n'
    config += f'[listeners.datagrams]\naddress = "udp://127.0.0.1:{udp}"\n'
    with Supervised(tmp_path, config) as service:
        service.until(f"^ready: {WEB}")
        assert fetch(("127.0.0.1", port)).startswith("one")
        assert os.stat(path).st_mode & 0o777 == 0o600
        with Load(path) as load:
            load.more()
            assert service.command("reload").returncode == 0
            load.more()
        assert load.failures == []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(30)
            sock.sendto(b"?", ("127.0.0.1", udp))
            assert sock.recv(100).startswith(b"one ")


def test_a_reload_with_another_listener(tmp_path: Path) -> None:
    old, new = free_port(), free_port()
    with Supervised(tmp_path, toml(old)) as service:
        service.until(f"^ready: {WEB}")
        service.config.write_text(toml(new, answer="two"))
        done = service.command("reload")
        assert (done.returncode, done.stdout) == (0, "generation 2 serves\n"), done.stderr
        assert fetch(("127.0.0.1", new)).startswith("two")
        leaving = [worker for worker in service.workers() if worker["generation"] == 1]
        if not leaving:
            with pytest.raises(ConnectionRefusedError):
                fetch(("127.0.0.1", old))


def test_a_reload_says_what_it_leaves_and_takes_the_rest(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service:
        service.until(f"^ready: {WEB}")
        service.config.write_text(f'rollback = "1h"\n{toml(port)}\n[metrics]\ninterval = "3s"\n')
        done = service.command("reload")
        assert done.returncode == 0, done.stderr
        service.log.wait_for("reload: metrics: as before until the next start")
        # It would keep the old workers now, if these could pause.
        service.log.wait_for("cannot pause, so no roll back is possible")


def test_a_reload_that_cannot_bind_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port)) as service, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service.until(f"^ready: {WEB}")
        service.config.write_text(toml(taken.getsockname()[1]))
        done = service.command("reload")
        assert done.returncode == 1 and "Address already in use" in done.stderr
        assert fetch(("127.0.0.1", port)).startswith("one")


def test_a_signal_goes_to_a_component(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port, more='reload_signal = "SIGUSR2"')) as service:
        service.until(f"^ready: {WEB}")
        done = service.command("signal", "web", "usr2")
        assert (done.returncode, done.stdout) == (0, "sent to 2 workers\n"), done.stderr
        with Load(("127.0.0.1", port)) as load:
            load.more()
        assert answers(load) == {f"signal-{int(signal.SIGUSR2)}"} and load.failures == []
        before = {worker["pid"] for worker in service.workers()}
        assert service.command("reload").returncode == 0  # theirs is a signal
        assert {worker["pid"] for worker in service.workers()} == before


def test_messages_that_make_no_sense_end_nobody(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, re, socket\n"
        "fd = int(re.search(r'channel=(\\d+)', os.environ['FORKFD_WORKER'])[1])\n"
        "with socket.socket(fileno=fd) as channel:\n"
        "    for text in (b'[]', b'\\xff', b'[' * 60000, b'{\"event\": []}', b'{}'):\n"
        "        channel.send(text)\n"
        '    channel.send(b\'{"event": "ready"}\')\n'
        "    channel.recv(100)\n"
    )
    config = f"[components.odd]\ncommand = {[sys.executable, '-S', str(program)]!r}\n"
    with Supervised(tmp_path, config) as service:
        service.until("^ready: odd 1/1")
        service.log.wait_for("message refused", count=5)
        assert service.command("stop").returncode == 0
        assert service.wait() == 0


def test_an_unmodified_server_is_ready_when_it_accepts(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, toml(port, how=["silent"], more='readiness = "accept"')) as service:
        service.until(f"^ready: {WEB}")
        assert fetch(("127.0.0.1", port)).startswith("one")


def test_gunicorn_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(
        "def app(environ, start):\n"
        "    start('200 OK', [('Content-Length', '2')])\n"
        "    return [b'ok']\n"
    )
    port = free_port()
    arguments = [f"--listen=tcp://127.0.0.1:{port}", "--workers=2", "--name=web", "--"]
    arguments += [sys.executable, "-m", "gunicorn", f"--chdir={tmp_path}", "--log-level=error"]
    with Supervised(tmp_path, arguments=[*arguments, "application:app"]) as service:
        service.until(f"^ready: {WEB}")
        curl = [tool("curl", "curl"), "-s", f"http://127.0.0.1:{port}/"]
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"ok"
        assert service.command("reload").returncode == 0
        assert subprocess.run(curl, capture_output=True, check=True).stdout == b"ok"
        assert service.command("stop").returncode == 0
        assert service.wait() == 0
