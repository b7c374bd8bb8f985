"""The rooms that workers are made with, opened in the order in which they need one another."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import pyforkfd as ff
from pyforkfd._page import SharedPage

from ._cgroup import Policy, Tree, open_tree
from ._keeper import Keeper
from ._metrics import Metrics
from ._notify_socket import NotifySocket
from ._output import Output, forwarded
from ._reactor import Reactor
from ._sockets import Sockets
from ._spec import Service
from ._succession import Succession
from ._watch import Watch
from ._zygotes import Zygotes

log = logging.getLogger("pyforkfd.supervisor")

_SLOTS = 1024  # workers that have one; 64 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What workers are made with; borrowed."""

    reactor: Reactor
    sockets: Sockets
    notify: NotifySocket
    zygotes: Zygotes
    succession: Succession
    output: Output
    watch: Watch
    cgroups: Tree | None


def open_rooms(
    stack: contextlib.ExitStack,
    service: Service,
    succession: Succession,
    memory: Callable[[int], int | None],
) -> Rooms:
    """Make all of them, or take them over from a predecessor.

    Args:
        stack: closes them.
        service: what is to run.
        succession: has what a predecessor has left, and gets what a successor is to have.
        memory: worker -> bytes that it uses.

    Raises:
        OSError, ValueError: one cannot be made.
        CgroupError: a component wants cgroups, and there can be none.
    """
    enter = stack.enter_context
    reactor = enter(Reactor())
    output = enter(Output(service.log, reactor, succession))
    enter(forwarded(output))
    sockets = enter(Sockets(ff.listen_fds(), succession.sockets()))
    cgroups = _cgroups(service, succession.keeper)
    if cgroups is not None:
        enter(cgroups)
    watch = enter(_watch(succession, memory))
    notify = enter(NotifySocket(f"{succession.directory}/notify", succession.notify_socket()))
    succession.put_notify(notify)
    zygotes = Zygotes()
    stack.callback(zygotes.close)
    return Rooms(
        reactor=reactor,
        sockets=sockets,
        notify=notify,
        zygotes=zygotes,
        succession=succession,
        output=output,
        watch=watch,
        cgroups=cgroups,
    )


def _watch(succession: Succession, memory: Callable[[int], int | None]) -> Watch:
    if (fd := succession.take("page")) is None:
        page = SharedPage.create(_SLOTS)
    else:
        page = SharedPage(fd.detach())
    succession.put("page", page)
    return Watch(page, Metrics(page, memory=memory), memory)


def _cgroups(service: Service, keeper: Keeper | None) -> Tree | None:
    """Our own cgroup, divided, as strictly as the strictest component wants it."""
    policies = {spec.cgroup for spec in service.components.values()}
    policy: Policy = "off"
    for stricter in ("prefer", "require"):
        if stricter in policies:
            policy = stricter
    limits = [spec.limits for spec in service.components.values() if spec.cgroup == policy]
    also = () if keeper is None else (os.getppid(),)
    tree, missing = open_tree(policy, limits, also=also)
    wanted = any(each.files() for each in limits)
    for what in missing:
        log.log(logging.WARNING if wanted else logging.INFO, "%s", what)
    return tree
