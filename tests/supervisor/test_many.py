"""Hundreds of workers: the loop goes on while they are started, and ends them all."""

from __future__ import annotations

import time
from pathlib import Path

from supervised import Supervised

from pyforkfd.supervisor.control._client import ControlClient
from pyforkfd.supervisor.processes import _starts

MANY = 300
PATIENCE = 60.0
SLEEP = f"""
[components.a]
command = ["sleep", "1000"]
readiness = "started"
workers = {MANY}
"""


def connected(service: Supervised) -> ControlClient:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return service.client()
        except FileNotFoundError:
            assert time.monotonic() < end, service.log.text()
            time.sleep(0.01)


def test_the_supervisor_answers_while_it_starts_workers(tmp_path: Path) -> None:
    with Supervised(tmp_path, SLEEP) as service, connected(service) as client:
        started = set()
        while MANY not in started:
            status = client.request("status")["status"]
            (found,) = status["components"]
            started.add(sum(worker["pid"] is not None for worker in found["workers"]))
        assert any(0 < count < MANY for count in started)
        client.request("stop", now=True)
        assert service.wait() == 0


def test_workers_that_wait_to_be_started_are_given_up(tmp_path: Path) -> None:
    with Supervised(tmp_path, SLEEP) as service, connected(service) as client:
        (found,) = client.request("status")["status"]["components"]
        assert any(worker["pid"] is None for worker in found["workers"])
        client.request("stop", now=True)
        assert service.wait() == 0
        assert "Traceback" not in service.log.text()
        assert "it was given up before it was started" in service.log.text()


def test_a_worker_that_waits_for_its_turn_is_not_forgotten() -> None:
    starts = _starts.Starts()
    assert starts.postpone(1) and not list(starts.due()), "no turn has begun"
    starts.begin_turn()
    assert starts.postpone(2), "the first is first"
    assert list(starts.due()) == [1, 2] and not starts.waiting
    assert not starts.postpone(3)
