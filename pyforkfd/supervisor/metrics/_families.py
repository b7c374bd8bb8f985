"""The table of metrics: name, kind, labels and meaning of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: name, kind, labels and meaning.

    Attributes:
        name: as it is shown; that of a counter ends in ``_total``.
        kind: the type in Prometheus.
        labels: names of the labels.
        help: the meaning, one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


_C, _CW = ("component",), ("component", "worker")


def _families(*rows: tuple[str, str, tuple[str, ...], str]) -> dict[str, Family]:
    return {
        name: Family(name=name, kind=kind, labels=labels, help=text)  # type: ignore[arg-type]
        for name, kind, labels, text in rows
    }


FAMILIES: dict[str, Family] = _families(
    ("forkfd_generation", "gauge", (), "Current generation of the service."),
    ("forkfd_degraded", "gauge", _C, "1: the component is degraded, its restarts given up."),
    ("forkfd_reloads_total", "counter", ("outcome",), "Reloads by their outcome."),
    ("forkfd_workers", "gauge", _C, "Workers that exist, ready or not."),
    ("forkfd_workers_wanted", "gauge", _C, "Workers that should exist."),
    ("forkfd_workers_ready", "gauge", _C, "Workers that serve."),
    ("forkfd_requests_total", "counter", _C, "Requests answered, by ended workers too."),
    ("forkfd_errors_total", "counter", _C, "Requests that failed, of ended workers too."),
    ("forkfd_requests_lost_total", "counter", _C, "Requests in flight when their worker ended."),
    ("forkfd_restarts_total", "counter", _C, "Workers started in place of one that crashed."),
    ("process_crash_total", "counter", ("component", "cause"), "Unexpected ends of workers."),
    ("forkfd_exits_total", "counter", ("component", "cause"), "All ends of workers."),
    ("forkfd_pressure_total", "counter", ("component", "resource"), "Waits beyond their bound."),
    ("forkfd_log_lost_total", "counter", ("sink",), "Log records that a sink has lost."),
    ("forkfd_boot_seconds", "histogram", _C, "From the start of a worker to its readiness."),
    ("forkfd_worker_generation", "gauge", _CW, "Generation of a worker."),
    ("forkfd_worker_ready", "gauge", _CW, "1: the worker serves."),
    ("forkfd_worker_requests_total", "counter", _CW, "Requests that a worker answered."),
    ("forkfd_worker_errors_total", "counter", _CW, "Requests of a worker that failed."),
    ("forkfd_worker_in_flight", "gauge", _CW, "Requests that a worker is answering."),
    ("forkfd_worker_heartbeat_age_seconds", "gauge", _CW, "Since the last heartbeat of a worker."),
    ("forkfd_worker_memory_bytes", "gauge", _CW, "Memory of a worker's cgroup or process."),
)
"""Every metric by its name, in the order in which they are shown."""
