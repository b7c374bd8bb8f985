"""The opening of an engine: all resources of a service, in the order of their dependencies."""

from __future__ import annotations

import signal
from contextlib import ExitStack

from ._engine import Engine, Front
from ._service_manager import Manager
from ._shortage import raised_limit
from ._signals import SignalQueue
from .control._requests import Requests
from .control._server import ControlSocket
from .metrics._endpoint import Endpoint
from .processes._crash_hooks import Hooks
from .processes._resources import open_resources
from .spec._spec import Service
from .succession._succession import Succession
from .succession._upgrade import Upgrade

_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


def open_engine(stack: ExitStack, service: Service, succession: Succession, front: Front) -> Engine:
    """Open the resources of a service, and its engine on them.

    Args:
        stack: closes them, those that were opened before a failure included.
        service: the specification.
        succession: has what a predecessor has left, and gets what a successor is to have.
        front: receives requests, signals and messages.

    Raises:
        OSError, ValueError: a resource cannot be opened; nothing was started.
        KeyError: a user of control.allow_users does not exist.
    """
    enter = stack.enter_context
    enter(raised_limit())  # the first: children are given the former one
    resources = open_resources(stack, service, succession)
    if succession.past is None:
        resources.sockets.open(service)
    reactor = resources.reactor
    endpoint = enter(Endpoint(service.metrics, resources.watch.metrics, reactor))
    if service.control.path is not None:
        requests = Requests(front.requests)
        requests.attach_logs(resources.output.tail)
        enter(ControlSocket(service.control, reactor, requests))
    engine = Engine(
        service,
        resources,
        front,
        endpoint=endpoint,
        manager=Manager(),
        signals=enter(SignalQueue(_SIGNALS)),
        hooks=enter(Hooks(reactor)),
        upgrade=enter(Upgrade(reactor, succession)),
    )
    stack.callback(engine.workers.abandon)
    return engine
