"""The adoption of workers that a predecessor has started."""

from __future__ import annotations

from contextlib import suppress

from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.state._events import Ended, Event, Spawned
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.supervisor.succession._handover import Handover

from ._generations import Generations
from ._notify_socket import NotifySocket
from ._resources import Resources, leaf_name, notify_path
from ._workers import Workers


def adopt_workers(
    past: Handover, resources: Resources, workers: Workers, generations: Generations
) -> list[Event]:
    """Watch the workers that were handed over.

    Args:
        past: the predecessor's record.
        resources: with the descriptors that were handed over.
        workers: gets their processes.
        generations: the specifications that they were started from.

    Returns:
        What is news for the state of the record: workers that have a process, and workers
        whose process was not handed over.
    """
    events: list[Event] = []
    begun = []  # workers that have or had a process
    for worker in past.state.workers.values():
        found = resources.succession.worker(worker.id, worker.pid)
        if found is not None:
            process, channel = found
            service = generations[worker.generation]
            resources.output.readopt(worker)
            notify = _notify_socket(worker, resources)
            workers.adopt(worker, service, process, channel, notify, _leaf(worker, resources))
            events.append(Spawned(worker.id, process.pid))
            begun.append(worker)
        elif worker.pid is not None:
            events.append(Ended(worker.id, "exit", "its process was not handed over"))
            begun.append(worker)
    resources.watch.adopt(begun)
    return events


def _notify_socket(worker: Worker, resources: Resources) -> NotifySocket | None:
    succession = resources.succession
    if (fd := succession.notify_socket(worker.id)) is None:
        return None
    return NotifySocket(notify_path(succession, worker.id), fd)


def _leaf(worker: Worker, resources: Resources) -> Leaf | None:
    if resources.cgroups is None:
        return None
    with suppress(OSError):  # it has none
        return resources.cgroups.adopt(leaf_name(worker))
    return None
