"""``serve --check``: what would keep a service from starting on this machine, nothing started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pyforkfd as ff
from pyforkfd._trusted_paths import walk
from pyforkfd.supervisor.cgroups._tree import refusals
from pyforkfd.supervisor.control._client import ControlClient
from pyforkfd.supervisor.control._messages import ControlError
from pyforkfd.supervisor.control._path import default_path
from pyforkfd.supervisor.metrics._prometheus import MetricsUnavailableError, demand_client
from pyforkfd.supervisor.spec._address import parse_address
from pyforkfd.supervisor.spec._problems import Place, Problem
from pyforkfd.supervisor.spec._spec import Control, Listener, Service
from pyforkfd.supervisor.spec._validate import check_control
from pyforkfd.supervisor.succession._directory import short_directory
from pyforkfd.supervisor.succession._keeper import keeper_program

from ._check_addresses import refusal, taken
from ._check_imports import hooks, unimportable

_PATIENCE = 2.0  # seconds for the reply of a service that runs


class Check:
    """The problems of a service that are those of the machine.

    What a service of the same name holds already is no problem: the file is then checked for a
    reload of that.

    Attributes:
        warnings: what keeps no service from starting, or could not be checked.
    """

    def __init__(self, control: str | None) -> None:
        """Begin.

        Args:
            control: path of the control socket, in place of the specification's.
        """
        self.warnings: list[Problem] = []
        self._control = control

    def __call__(self, service: Service) -> Iterator[Problem]:
        """Find every problem; values of the service may be wrong, which is reported elsewhere."""
        held: frozenset[str] | None = None
        try:
            given = self._control or service.control.path
            path = given or default_path(service.name, create=False)
        except OSError as error:
            yield Problem(place=("control", "path"), text=str(error))
        else:
            held = _held_by(path, service.name)
            if held is None:
                yield from _control(path, service.control, usual=given is None)
        yield from self._listeners(service, held or frozenset())
        yield from _metrics(service, held or frozenset())
        yield from _log(service)
        if held is None:
            yield from _machine(service)
        yield from unimportable(service)
        self.warnings += hooks(service)

    def _listeners(self, service: Service, held: frozenset[str]) -> Iterator[Problem]:
        try:
            managed = {one.name for one in ff.listen_fds()}
        except (OSError, ValueError) as error:
            yield Problem(place=("listeners",), text=str(error))
            managed = set()
        for name, listener in service.listeners.items():
            place: Place = ("listeners", name, "address")
            try:
                address = parse_address(listener.address)
            except ValueError:
                continue  # reported by the specification
            if listener.address in held:
                continue
            if address.scheme != "systemd":
                if (why := refusal(listener)) is not None:
                    yield Problem(place=place, text=why)
            elif not managed:
                text = "not checked: no service manager has passed its sockets to this check"
                self.warnings.append(Problem(place=place, text=text))
            elif address.location not in managed:
                text = "the service manager passed no descriptor of that name"
                yield Problem(place=place, text=text)


def _control(path: str, control: Control, *, usual: bool) -> Iterator[Problem]:
    new = usual and not os.path.lexists(os.path.dirname(path))  # the start makes the directory
    found = [
        Problem(place=("control", *place), text=text)
        for place, text in check_control(dataclasses.replace(control, path=path))
        if path != control.path  # else the specification has reported it
        and not (new and place == ("path",))
    ]
    yield from found
    if not new and not found and (why := taken(path, "listen")) is not None:
        yield Problem(place=("control", "path"), text=why)


def _held_by(path: str, name: str) -> frozenset[str] | None:
    """Return the addresses that a running service of this name has bound; None: none runs."""
    try:
        with ControlClient(path) as client:
            status = client.request("status", timeout=_PATIENCE)["status"]
        if status["service"] == name:
            return frozenset(status["addresses"])
    except (OSError, ControlError, ValueError, LookupError, TypeError):
        pass  # nobody listens there, or it is no service of ours
    return None


def _metrics(service: Service, held: frozenset[str]) -> Iterator[Problem]:
    metrics = service.metrics
    place = "address" if metrics.address is not None else "textfile"
    try:
        demand_client(metrics)
    except MetricsUnavailableError as error:
        yield Problem(place=("metrics", place), text=str(error))
    if metrics.address is None or metrics.address in held:
        return
    try:
        why = refusal(Listener(name="metrics", address=metrics.address))
    except ValueError:
        return  # reported by the specification
    if why is not None:
        yield Problem(place=("metrics", "address"), text=why)


def _log(service: Service) -> Iterator[Problem]:
    """Find why the log cannot be opened; one that does not exist is not created."""
    if service.log.path is None:
        return
    directory, name = os.path.split(os.path.abspath(service.log.path))
    try:
        with walk(directory) as found:
            found.demand_lasting_names("the log")
            for flags in (os.O_WRONLY | os.O_APPEND, os.O_RDONLY):
                os.close(found.open_file(name, flags))
    except FileNotFoundError:
        return  # its directory is the specification's to check
    except (OSError, ValueError) as error:
        yield Problem(place=("log", "path"), text=str(error))


def _machine(service: Service) -> Iterator[Problem]:
    """Find what the machine has not: cgroups, the keeper, a place for sockets."""
    strict = [c for c in service.components.values() if c.cgroup == "require"]
    if strict:
        place: Place = ("components", strict[0].name, "cgroup")
        for problem in refusals([component.limits for component in strict]):
            yield Problem(place=place, text=str(problem))
    if service.keeper and not os.access(keeper_program(), os.X_OK):
        yield Problem(place=("keeper",), text=f"{keeper_program()} cannot be executed")
    try:
        short_directory()
    except OSError as error:
        yield Problem(place=("TMPDIR",), text=str(error))
