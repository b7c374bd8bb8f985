"""SIGUSR2: another program takes the supervisor's place, and no request notices."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from clients import Load
from leaks import gone, steady
from logged_service import LoggedService, config, write
from places import HELPERS
from processes import alive, children, descendants, descriptors

from pyforkfd.supervisor.succession import _preflight

TIMES = 20


def upgrade(service: LoggedService) -> None:
    os.kill(service.supervisor, signal.SIGUSR2)
    service.wait_for("took over 2 workers")


def test_twenty_upgrades_under_load(tmp_path: Path) -> None:
    port = config(tmp_path / "s.toml")
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        workers, held = children(service.process.pid), holdings(service)
        assert len(workers) == 2
        each = steady(lambda: {pid: descriptors(pid) for pid in workers})
        with Load(port) as load:
            for _ in range(TIMES):
                upgrade(service)
                load.wait_for(50)
        assert load.failures == []
        assert load.pids() <= workers
        assert children(service.process.pid) == workers
        assert service.supervisor == service.process.pid
        same(held, service)
        assert gone(lambda: {pid: descriptors(pid) for pid in workers} == each)


def held_by(service: LoggedService) -> list[str]:
    """The supervisor's descriptors, whatever their numbers."""
    return sorted(descriptors(service.process.pid).values())


def holdings(service: LoggedService) -> list[str]:
    return steady(lambda: held_by(service))


def same(before: list[str], service: LoggedService) -> None:
    """It has the same descriptors, a moment after its last event."""
    assert gone(lambda: held_by(service) == before), (before, held_by(service))


def test_the_new_program_notices_an_end_and_starts_another(tmp_path: Path) -> None:
    config(tmp_path / "s.toml")
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        upgrade(service)
        victim = min(children(service.process.pid))
        os.kill(victim, signal.SIGKILL)
        service.wait_for(r"died \(signal\).*SIGKILL")
        service.ready(1)
        assert victim not in children(service.process.pid)


def test_a_worker_that_ended_meanwhile_is_replaced(tmp_path: Path) -> None:
    config(tmp_path / "s.toml")
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        victim = min(children(service.process.pid))
        os.kill(service.process.pid, signal.SIGSTOP)  # both signals find the loop at the same time
        os.kill(victim, signal.SIGKILL)
        os.kill(service.process.pid, signal.SIGUSR2)
        os.kill(service.process.pid, signal.SIGCONT)
        service.wait_for("died .*SIGKILL")
        service.wait_for("took over")
        assert gone(lambda: len(children(service.process.pid)) == 2)


def test_a_generation_that_boots_goes_on(tmp_path: Path) -> None:
    port = config(tmp_path / "s.toml")
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        old = children(service.process.pid)
        with Load(port) as load:
            os.kill(service.process.pid, signal.SIGHUP)
            os.kill(service.process.pid, signal.SIGUSR2)
            service.wait_for("took over")
            if "generation 2 serves" not in service.log.text():
                service.wait_for("generation 2 serves")
            assert gone(lambda: not children(service.process.pid) & old)
            load.wait_for(50)
        assert load.failures == []
        assert gone(lambda: len(children(service.process.pid)) == 2)


def test_workers_of_a_zygote_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.fspath(HELPERS))
    port = config(tmp_path / "s.toml", start='function = "pid_server:main"')
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        with Load(port) as load:
            load.wait_for(50)
            for _ in range(3):
                upgrade(service)
                load.wait_for(50)
        assert load.failures == []
        assert load.pids() <= children(service.process.pid)
        # A fresh zygote makes another, also a child that the kernel ends with us.
        os.kill(next(iter(load.pids())), signal.SIGKILL)
        service.wait_for("died .*SIGKILL")
        service.ready(1)
        left = descendants(service.process.pid)
        assert len(left) == 3, "two workers and a zygote"
        service.process.kill()
        assert gone(lambda: not any(map(alive, left)), 1.0)


def test_without_a_keeper_no_worker_is_left(tmp_path: Path) -> None:
    config(tmp_path / "s.toml", workers=4)
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(4)
        workers = children(service.process.pid)
        assert len(workers) == 4
        service.process.kill()
        assert gone(lambda: not any(map(alive, workers)), 1.0)


class Broken:
    """Programs that cannot take over, each for a reason of its own."""

    @staticmethod
    def config(directory: Path) -> str:
        (directory / "s.toml").write_text("name = 3")
        return "exit code 1"

    @staticmethod
    def imports(directory: Path) -> str:
        (directory / "serve.py").write_text("import nosuchmodule")
        return "exit code 1"

    @staticmethod
    def another(directory: Path) -> str:
        (directory / "serve.py").write_text("print('hello')")
        return "without reading the handover"

    @staticmethod
    def version(directory: Path) -> str:
        serve = directory / "serve.py"
        serve.write_text(
            "import pyforkfd.supervisor.succession._handover as h; h.VERSION += 1\n"
            + serve.read_text().replace("from __future__ import annotations", "")
        )
        return "exit code 1"


@pytest.mark.parametrize(
    ("breaking", "output"),
    [
        (Broken.config, "name: 3 is not a string"),
        (Broken.imports, "nosuchmodule"),
        (Broken.another, "hello"),
        (Broken.version, "version 3, this program reads version 4"),
    ],
)
def test_a_program_that_cannot_take_over_does_not(
    tmp_path: Path, breaking: object, output: str
) -> None:
    port = config(tmp_path / "s.toml")
    serve, good = tmp_path / "serve.py", (tmp_path / "s.toml").read_text()
    program = (HELPERS / "serve.py").read_text()
    serve.write_text(program)
    with LoggedService(tmp_path / "s.toml", [sys.executable, str(serve)]) as service:
        service.ready(2)
        workers, held = children(service.process.pid), holdings(service)
        with Load(port) as load:
            assert callable(breaking)
            why = breaking(tmp_path)
            os.kill(service.process.pid, signal.SIGUSR2)
            service.wait_for(f"nothing has changed: the new program cannot take over: .*{why}")
            service.wait_for(output)
            load.wait_for(50)
            assert load.failures == []
        assert children(service.process.pid) == workers
        same(held, service)
        # And once it is mended it does.
        serve.write_text(program)
        (tmp_path / "s.toml").write_text(good)
        upgrade(service)
        assert children(service.process.pid) == workers


def test_a_program_that_is_removed_after_its_trial(tmp_path: Path) -> None:
    """The exec fails: everything is as before."""
    port = config(tmp_path / "s.toml")
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    serve = tmp_path / "serve.py"
    serve.write_text(
        f"import os, sys\nsys.path[:0] = {sys.path!r}\n"
        f"if 'preflight' in os.environ.get('FORKFD_HANDOVER', ''): os.unlink({str(python)!r})\n"
        + (HELPERS / "serve.py").read_text().replace("from __future__ import annotations", "")
    )
    with LoggedService(tmp_path / "s.toml", [str(python), str(serve)]) as service:
        service.ready(2)
        workers, held = children(service.process.pid), holdings(service)
        with Load(port) as load:
            os.kill(service.process.pid, signal.SIGUSR2)
            service.wait_for("nothing has changed: .*No such file")
            load.wait_for(50)
            assert load.failures == []
        assert children(service.process.pid) == workers
        same(held, service)
        # It is not there even to be tried.
        os.kill(service.process.pid, signal.SIGUSR2)
        service.wait_for("nothing has changed: .*No such file")
        os.kill(min(workers), signal.SIGKILL)
        service.wait_for("died")
        service.ready(1)


def test_a_reload_after_an_upgrade_reads_the_file(tmp_path: Path) -> None:
    port = config(tmp_path / "s.toml")
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        upgrade(service)
        write(tmp_path / "s.toml", port, keeper=False, workers=3)
        os.kill(service.process.pid, signal.SIGHUP)
        service.wait_for("generation 2 serves")
        assert gone(lambda: len(children(service.process.pid)) == 3)


def test_a_line_of_which_the_predecessor_has_read_a_part_is_one_line(tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = (
        f"printf 'the first half, '; while ! test -e {go}; do sleep 0.05; done; echo the second"
    )
    (tmp_path / "s.toml").write_text(
        f"""
name = "test"
keeper = false
[components.web]
command = ["/bin/sh", "-c", "{program}; exec sleep 1000"]
readiness = "started"
workers = 2
cgroup = "off"
[log]
path = "{tmp_path}/app.log"
"""
    )
    log = tmp_path / "app.log"
    with LoggedService(tmp_path / "s.toml") as service:
        service.ready(2)
        upgrade(service)
        upgrade(service)
        go.touch()
        assert gone(lambda: log.read_text().count('"the first half, the second"') == 2)


def test_a_trial_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_preflight, "PATIENCE", 0.05)
    monkeypatch.setattr(_preflight, "own_arguments", lambda: ["/bin/sleep", "99"])
    preflight = _preflight.Preflight({}, b"")
    assert not select.select([preflight.fileno()], [], [], preflight.deadline - time.monotonic())[0]
    preflight.look()
    assert "not proved within 0.05 s" in preflight.why_not()
    preflight.close()
