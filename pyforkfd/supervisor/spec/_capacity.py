"""The descriptors that a supervisor needs for its workers, against its limit."""

from __future__ import annotations

from dataclasses import dataclass
from resource import RLIMIT_NOFILE, getrlimit

from pyforkfd.supervisor._shortage import reserve

from ._problems import Findings
from ._spec import Component, Service

_OWN = 24  # standard streams, epoll, log, control socket, ...; and what one start needs
_ZYGOTE = 3  # its process, its channel, its answers
_KEEPER_MOST = 4096  # MOST of csrc/keeper/link.c: each descriptor of a worker is held there too


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The need of a service for descriptors.

    Attributes:
        workers: number of workers that are configured.
        needed: descriptors for all of them and for the supervisor itself.
        limit: descriptors that the supervisor may have, RLIMIT_NOFILE (hard).
        fitting: number of workers that the limit is enough for, if further ones are like those
            that need the most.
    """

    workers: int
    needed: int
    limit: int
    fitting: int

    def __str__(self) -> str:
        return (
            f"{self.workers} workers and the supervisor need {self.needed} of {self.limit} "
            f"descriptors (RLIMIT_NOFILE, hard); {self.fitting} workers fit, half as many while a "
            "reload replaces them all"
        )


def capacity(service: Service, limit: int | None = None, *, least: bool = False) -> Capacity:
    """Return the need of a service for descriptors.

    Args:
        service: a valid service.
        limit: of descriptors; None: the hard limit of this process.
        least: without those of cgroups that are only preferred.
    """
    if limit is None:
        limit = getrlimit(RLIMIT_NOFILE)[1]
        if service.keeper:
            limit = min(limit, _KEEPER_MOST)
    components = service.components.values()
    each = {spec.name: _of_worker(spec, service, least=least) for spec in components}
    sharded = {name for name, listener in service.listeners.items() if listener.shards}
    shared = {name for spec in components for name in spec.listen if name not in sharded}
    zygotes = {spec.zygote or spec.name for spec in components if spec.function is not None}
    fixed = _OWN + len(shared) + _ZYGOTE * len(zygotes) + reserve(limit)
    workers = sum(spec.workers for spec in components)
    needed = fixed + sum(spec.workers * each[spec.name] for spec in components)
    more = (limit - needed) // max(each.values(), default=1)
    return Capacity(workers=workers, needed=needed, limit=limit, fitting=max(0, workers + more))


def _of_worker(spec: Component, service: Service, *, least: bool) -> int:
    count = 4  # its process, its channel, its notify socket and its page
    count += (spec.stdout == "capture") + (spec.stderr == "capture")
    listeners = (service.listeners.get(name) for name in spec.listen)
    count += sum(listener is not None and listener.shards for listener in listeners)
    if spec.cgroup == "require" or (spec.cgroup == "prefer" and not least):
        count += 1 + len(spec.pressure.wanted())
    return count


def check_capacity(service: Service, limit: int | None = None) -> Findings:
    """Find whether the workers of a service are more than its descriptors are enough for."""
    found = capacity(service, limit, least=True)
    if found.needed <= found.limit:
        return
    largest = max(service.components.values(), key=lambda spec: spec.workers)
    text = (
        f"{found.workers} workers and the supervisor need {found.needed} descriptors, and "
        f"RLIMIT_NOFILE (hard) allows {found.limit}: {found.fitting} workers fit; write fewer, or "
        "raise the limit (LimitNOFILE=, ulimit -Hn)"
    )
    yield ("components", largest.name, "workers"), text
