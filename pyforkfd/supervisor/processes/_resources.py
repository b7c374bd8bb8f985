"""The resources that workers are started with, opened in the order of their dependencies."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import time
from dataclasses import dataclass, field

import pyforkfd as ff
from pyforkfd.supervisor._reactor import Reactor
from pyforkfd.supervisor.cgroups._delegation import OWN_LEAF
from pyforkfd.supervisor.cgroups._file import CgroupError
from pyforkfd.supervisor.cgroups._leaf import Leaf
from pyforkfd.supervisor.cgroups._pressure_watch import PressureWatch, unavailable
from pyforkfd.supervisor.cgroups._tree import Policy, Tree, open_tree
from pyforkfd.supervisor.health._pages import Pages
from pyforkfd.supervisor.health._watch import Watch
from pyforkfd.supervisor.logs._output import Output, forwarded
from pyforkfd.supervisor.metrics._counters import Metrics
from pyforkfd.supervisor.spec._limits import RESOURCES, Resource
from pyforkfd.supervisor.spec._spec import Service
from pyforkfd.supervisor.state._model import Worker
from pyforkfd.supervisor.succession._keeper import Keeper
from pyforkfd.supervisor.succession._succession import Succession

from ._notify_socket import NotifySocket
from ._running import RunningWorkers
from ._sockets import Sockets
from ._zygotes import Zygotes

log = logging.getLogger("pyforkfd.supervisor")

_PATIENCE = 2.0  # seconds for killed processes to end
_TRANSIENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The resources that workers are started with; borrowed.

    Attributes:
        reactor: calls back when a descriptor is ready.
        running: workers that have a process, by id.
        sockets: the listening sockets.
        notify: NOTIFY_SOCKET of the workers of an older predecessor; None: there is none.
        zygotes: processes that workers are cloned from.
        succession: what a successor is to have.
        output: the log, and the pipes of captured output.
        watch: the workers' pages and the counters.
        cgroups: the supervisor's own cgroup; None: it has none.
        pressure: the pressure triggers on workers' cgroups.
        emptying: cgroups of workers that have ended or were not started, to be removed.
    """

    reactor: Reactor
    running: RunningWorkers
    sockets: Sockets
    notify: NotifySocket | None
    zygotes: Zygotes
    succession: Succession
    output: Output
    watch: Watch
    cgroups: Tree | None
    pressure: PressureWatch
    emptying: list[Leaf] = field(default_factory=list)


def open_resources(
    stack: contextlib.ExitStack, service: Service, succession: Succession
) -> Resources:
    """Open all resources, or take them over from a predecessor.

    Args:
        stack: closes them, those that were opened before a failure included.
        service: the specification.
        succession: has what a predecessor has left, and gets what a successor is to have.

    Raises:
        OSError, ValueError: one cannot be opened.
        CgroupError: a component requires a cgroup, and there can be none.
    """
    enter = stack.enter_context
    reactor = enter(Reactor())
    running = RunningWorkers()
    output = enter(Output(service.log, reactor, succession))
    enter(forwarded(output))
    sockets = enter(Sockets(ff.listen_fds(), succession.sockets()))
    cgroups = _cgroups(service, succession.keeper)
    if cgroups is not None:
        enter(cgroups)
        _end_leftovers(cgroups, succession)
    watch = enter(_watch(succession, running, output))
    os.stat(succession.directory)  # made now: a service without one must not seem to start
    notify = None
    if (shared := succession.take("notify")) is not None:
        notify = enter(NotifySocket(f"{succession.directory}/notify", shared))
        succession.put("notify", notify)
    zygotes = enter(Zygotes())
    pressure = enter(PressureWatch(reactor, watch.pressure, _pressure_resources(service, cgroups)))
    return Resources(
        reactor=reactor,
        running=running,
        sockets=sockets,
        notify=notify,
        zygotes=zygotes,
        succession=succession,
        output=output,
        watch=watch,
        cgroups=cgroups,
        pressure=pressure,
    )


def _watch(succession: Succession, running: RunningWorkers, output: Output) -> Watch:
    metrics = Metrics(memory=running.memory, log_lost=output.lost)
    return Watch(Pages(succession), metrics, running.memory)


def _cgroups(service: Service, keeper: Keeper | None) -> Tree | None:
    """Open the supervisor's cgroup under the strictest policy of all components."""
    policies = {spec.cgroup for spec in service.components.values()}
    policy: Policy = "off"
    for stricter in ("prefer", "require"):
        if stricter in policies:
            policy = stricter
    limits = [spec.limits for spec in service.components.values() if spec.cgroup == policy]
    also = () if keeper is None else (os.getppid(),)
    tree, missing = open_tree(policy, limits, also=also)
    wanted = any(each.files() for each in limits)
    for problem in missing:
        log.log(logging.WARNING if wanted else logging.INFO, "%s", problem)
    return tree


def _pressure_resources(service: Service, tree: Tree | None) -> frozenset[Resource]:
    """Return the resources of which the kernel reports pressure.

    Raises:
        CgroupError: a component requires a report that the kernel does not give.
    """
    if tree is None:
        return frozenset()
    components = service.components.values()
    wanted = {resource for spec in components for resource in spec.pressure.wanted()}
    missing = unavailable(tree.path / OWN_LEAF, sorted(wanted))
    for resource, error in missing.items():
        if any(s.cgroup == "require" and resource in s.pressure.wanted() for s in components):
            raise error
        log.warning("%s", error)
    return frozenset(RESOURCES) - missing.keys()


def notify_path(succession: Succession, worker_id: int) -> str:
    """Return the path of a worker's NOTIFY_SOCKET, which no other has."""
    return f"{succession.directory}/{worker_id:x}"


def leaf_name(worker: Worker) -> str:
    """Return the name of a worker's cgroup, which no other has."""
    return f"{worker.component}-{worker.id}.worker"


def _end_leftovers(tree: Tree, succession: Succession) -> None:
    """End the workers of a supervisor that was killed, but for those that are taken over.

    A worker whose process is not known was about to be started, and is started in a new cgroup.
    """
    workers = () if succession.past is None else succession.past.state.workers.values()
    known = [leaf_name(worker) for worker in workers if succession.has_worker(worker.id)]
    ours = (name for name in tree.leftovers() if re.search(r"-\d+\.worker(\.\d+)?$", name))
    for name in set(ours).difference(known):
        with contextlib.suppress(CgroupError):  # it was removed since
            end_leaf(tree.adopt(name), time.monotonic() + _PATIENCE)


def sweep_leafs(leafs: list[Leaf]) -> None:
    """Remove the cgroups that are empty, kill what is in the others.

    Args:
        leafs: those that are removed, or that cannot be, are closed and leave this list.
    """
    for leaf in leafs[:]:
        try:
            if leaf.remove():
                leafs.remove(leaf)
            else:
                leaf.kill()
        except CgroupError as error:
            if error.errno in _TRANSIENT:
                continue  # the next call tries again
            log.warning("%s", error)
            leafs.remove(leaf)
            leaf.close()


def end_leaf(leaf: Leaf, until: float) -> None:
    """Kill all processes in a cgroup, and remove it when they have ended; closes it.

    Args:
        leaf: taken.
        until: when to give up, on the clock of time.monotonic().
    """
    poll = select.poll()
    try:
        with leaf.watch() as changed:
            poll.register(changed, select.POLLPRI)
            while not leaf.remove():
                leaf.kill()
                left = until - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    log.warning("%s: not removed: a process in it does not end", leaf.path)
                    leaf.close()
                    return
                os.pread(changed.fileno(), 4096, 0)
    except CgroupError as error:
        log.warning("%s", error)
        leaf.close()
