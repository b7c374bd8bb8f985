"""Checks of a whole service, before anything is started."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from pyforkfd._trust import UntrustedPathError
from pyforkfd._trusted_files import demand_directory, demand_log_place, demand_socket_place
from pyforkfd._trusted_paths import walk

from ._address import Address, parse_address
from ._bounds import MOST_PROBLEMS, WORKERS
from ._capacity import check_capacity
from ._check_component import MOST_IDS, check_component, check_environment, check_target
from ._privileges import Holder, user_entry
from ._problems import Findings, Place
from ._reader import Reader, fields_of
from ._spec import Component, Control, Listener, Log, Loki, Metrics, Problem, Service, ZygoteSpec

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")  # a label, a file name, a LISTEN_FDNAME
_NAME_ADVICE = "write up to 64 letters, digits and _ . @ -, of which the first is no . @ -"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def validate(
    service: Service, *, unread: frozenset[str] = frozenset(), holder: Holder | None = None
) -> list[Problem]:
    """Find every problem of a service on this machine.

    Looks up users, programs, directories and the supervisor's privileges; opens no more than
    the files of filters, and changes nothing.

    Args:
        service: values of wrong types are found too; the rest of their component is then
            not checked.
        unread: names of listeners and zygotes that a file has, but wrongly: components may
            refer to them.
        holder: the process that will start the workers; None is the calling process.

    Returns:
        The problems; none: the service can be started.
    """
    reader = Reader(from_file=False)
    for name, annotation in fields_of(Service).items():
        reader.read(getattr(service, name), annotation, (name,))
    mistyped = reader.mistyped
    if any(len(place) < 2 for place in mistyped):
        return reader.problems
    sound = dataclasses.replace(
        service,
        components=_without(service.components, "components", mistyped),
        listeners=_without(service.listeners, "listeners", mistyped),
        zygotes=_without(service.zygotes, "zygotes", mistyped),
    )
    unread |= {str(place[1]) for place in mistyped}
    sections = {str(place[0]) for place in mistyped}
    findings = _check(sound, holder or Holder.now(), unread, sections)
    found = (Problem(place=place, text=text) for place, text in findings)
    return [*reader.problems, *itertools.islice(found, MOST_PROBLEMS)]


def _without(things: Mapping[str, T], kind: str, mistyped: list[Place]) -> Mapping[str, T]:
    names = {place[1] for place in mistyped if place[0] == kind}
    return {name: thing for name, thing in things.items() if name not in names}


def _check(
    service: Service, holder: Holder, unread: frozenset[str], mistyped: set[str]
) -> Findings:
    yield from _check_service(service, unread)
    yield from _check_names(service)
    for name, component in service.components.items():
        findings = check_component(component, service, holder, unread)
        yield from _below(("components", name), findings)
    for name, listener in service.listeners.items():
        yield from _below(("listeners", name), _check_listener(listener))
    yield from _check_addresses(service)
    if not unread:
        yield from _check_users_of_listeners(service)
        yield from check_capacity(service)
    for name, zygote in service.zygotes.items():
        yield from _below(("zygotes", name), _check_zygote(zygote))
    if "control" not in mistyped:
        yield from _below(("control",), check_control(service.control))
    if "log" not in mistyped:
        yield from _below(("log",), _check_log(service.log, service.components))
    if "metrics" not in mistyped:
        yield from _below(("metrics",), _check_metrics(service.metrics))


def _below(place: Place, findings: Findings) -> Findings:
    for inner, text in findings:
        yield (*place, *inner), text


def _check_service(service: Service, unread: frozenset[str]) -> Findings:
    if not _NAME.fullmatch(service.name):
        yield ("name",), f'"{service.name}" is not a name; {_NAME_ADVICE}'
    if not service.components and not unread:
        yield ("components",), "there is none, and so nothing to run; add [components.NAME]"
    counts = [component.workers for component in service.components.values()]
    workers = sum(counts)
    if all(map(WORKERS.contain, counts)) and not WORKERS.contain(workers):
        yield (
            ("components",),
            f"have {workers} workers together; write numbers {WORKERS.text()} in all",
        )
    for text in _app_dir_problems(service):
        yield ("app_dir",), text
    if service.rollback > 0:
        for name, component in service.components.items():
            if not component.can_pause:
                yield (
                    ("rollback",),
                    (
                        f"components.{name} cannot pause: its readiness is "
                        f'"{component.readiness}"; write "notify" there, or rollback = 0'
                    ),
                )


def _app_dir_problems(service: Service) -> Iterator[str]:
    """Find why nothing can be imported from app_dir, where something of it is imported."""
    components = service.components.values()
    hooks = (hook for component in components for hook in component.on_crash)
    uses = any(c.function is not None for c in components) or any(isinstance(h, str) for h in hooks)
    if service.app_dir is None or not uses:
        return
    try:
        with walk(service.app_dir) as found:
            found.demand_ours("the modules that functions are imported from")
    except UntrustedPathError as error:
        yield f"root would import from it: {error}; or set app_dir to another directory"
    except (OSError, ValueError) as error:
        yield f"{error}; write the path of a directory"


def _check_names(service: Service) -> Findings:
    for kind in ("components", "listeners", "zygotes"):
        for name, thing in getattr(service, kind).items():
            if thing.name != name:
                yield (
                    (kind, name, "name"),
                    f'is "{thing.name}", and the key is "{name}"; write that',
                )
            if not _NAME.fullmatch(name):
                yield (kind, name), f'"{name}" is not a name; {_NAME_ADVICE}'


def _check_listener(listener: Listener) -> Findings:
    try:
        address = parse_address(listener.address)
    except ValueError as error:
        yield ("address",), str(error)
        return
    if listener.shards and not address.is_internet:
        yield ("shards",), f"needs tcp or udp, and the address is {address.scheme}; remove it"
    if listener.mode is not None and not address.is_path:
        yield ("mode",), "needs a path, and the address has none; remove it"
    if listener.ipv6_only and (
        not address.is_internet or (address.location and ":" not in address.location)
    ):
        yield ("ipv6_only",), f"{listener.address} is not IPv6; remove it"
    if address.is_path:
        yield from _check_new_file(address.location, ("address",), demand_socket_place)


def _check_new_file(path: str, place: Place, demand: Callable[[str], object]) -> Findings:
    """Find why a file cannot be created at a path, as far as can be seen.

    Args:
        path: of the file.
        place: of the path in the specification.
        demand: raises UntrustedPathError where another user could have prepared the path.
    """
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        yield place, f"{path} is a directory; write the path of a file"
    elif not os.path.isdir(directory):
        yield place, f"{directory} is not a directory; create it, or write another path"
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield place, f"the supervisor may not write to {directory}"
    else:
        try:
            demand(path)
        except UntrustedPathError as error:
            yield place, str(error)
        except OSError:
            pass  # it is missing yet, or the start reports it


def _check_addresses(service: Service) -> Findings:
    """Find addresses that are bound more than once."""
    texts: list[tuple[Place, str]] = [
        (("listeners", name, "address"), listener.address)
        for name, listener in service.listeners.items()
    ]
    if service.metrics.address is not None:
        texts.append((("metrics", "address"), service.metrics.address))
    if service.control.path is not None:
        texts.append((("control", "path"), f"unix:{service.control.path}"))
    addresses: list[tuple[Place, Address]] = []
    for place, text in texts:
        try:
            addresses.append((place, parse_address(text)))
        except ValueError:
            continue  # reported where it stands
    groups: dict[object, list[tuple[Place, Address]]] = {}
    for place, address in addresses:  # those of different ports or paths never clash
        key = os.path.normpath(address.location) if address.is_path else address.port
        groups.setdefault((address.is_path, key), []).append((place, address))
    for group in groups.values():
        for (before, one), (after, other) in itertools.combinations(group, 2):
            if one.clashes(other):
                yield after, f"is taken by {'.'.join(map(str, before))}; write another"


def _check_users_of_listeners(service: Service) -> Findings:
    users_of: dict[str, list[str]] = {}
    for component in service.components.values():
        for name in dict.fromkeys(component.listen):
            users_of.setdefault(name, []).append(component.name)
    for name, listener in service.listeners.items():
        users = users_of.get(name, [])
        if not users:
            yield (
                ("listeners", name),
                (
                    "no component listens on it, and its connections would wait for ever; add it "
                    "to the listen of one"
                ),
            )
        if listener.shards and len(users) > 1:
            yield (
                ("listeners", name, "shards"),
                (
                    f"each worker owns a shard, and {' and '.join(users)} both have workers; use "
                    "one listener for each"
                ),
            )


def _check_zygote(zygote: ZygoteSpec) -> Findings:
    for index, module in enumerate(zygote.preload):
        if not all(part.isidentifier() for part in module.split(".")):
            yield ("preload", index), f'"{module}" is not a module; write "package.module"'
    if zygote.setup is not None and (text := check_target(zygote.setup)):
        yield ("setup",), text
    yield from check_environment(zygote.env)


def check_control(control: Control) -> Findings:
    """Find the problems of a control socket."""
    if control.path is not None:
        try:
            parse_address(f"unix:{control.path}")
        except ValueError as error:
            yield ("path",), str(error)
        else:
            if not control.path.startswith("@"):
                demand = functools.partial(demand_socket_place, ours=True)
                yield from _check_new_file(control.path, ("path",), demand)
    elif control.allow_users:
        yield ("allow_users",), "needs a socket; set path as well"
    for index, user in enumerate(control.allow_users):
        if isinstance(user, int) and not 0 <= user < MOST_IDS:
            yield ("allow_users", index), f"{user} is not an id; write 0 to {MOST_IDS - 1}"
            continue
        try:
            user_entry(user)
        except LookupError as error:
            yield ("allow_users", index), str(error.args[0])


def _check_log(log: Log, components: Mapping[str, Component]) -> Findings:
    if log.path is not None:
        yield from _check_new_file(log.path, ("path",), demand_log_place)
    else:
        for name in ("max_bytes", "dsync"):
            if getattr(log, name):
                yield (name,), "needs a file; set path as well"
    if log.path is None and not log.stdout and log.loki is None:
        for name, component in components.items():
            if "capture" in (component.stdout, component.stderr):
                yield (
                    (),
                    f"has no sink for the output of components.{name}; set path, stdout or loki",
                )
    if log.loki is not None:
        yield from _below(("loki",), _check_loki(log.loki))


def _check_loki(loki: Loki) -> Findings:
    try:
        url = urlsplit(loki.url)
        _ = url.port
    except ValueError as error:
        yield ("url",), f'"{loki.url}": {error}'
    else:
        if url.scheme not in ("http", "https") or not url.hostname:
            yield ("url",), f'"{loki.url}" is not a URL; write http://HOST or https://HOST'
        if url.username is not None or url.password is not None:
            yield ("url",), "has a password; write it into password_file, and the name into user"
    if not loki.labels and not loki.static_labels:
        yield ("labels",), "is empty, and a stream needs a label; add one"
    for name in loki.static_labels:
        if not _LABEL.fullmatch(name):
            yield (
                ("static_labels", name),
                f'"{name}" is not a label; write a letter or _, then letters, digits and _',
            )
    for name in ("tenant", "user"):
        text = getattr(loki, name)
        if text is not None and not (text.isascii() and text.isprintable()):
            yield (name,), f"{text!r} cannot be put into a header; write printable ASCII"
    if loki.user is not None and loki.token_file is not None:
        yield ("token_file",), "user is set as well; write only one of them"
    if (loki.user is None) is not (loki.password_file is None):
        missing = "user" if loki.user is None else "password_file"
        yield (missing,), "is missing; user and password_file go together"
    for name in ("password_file", "token_file", "ca_file"):
        path = getattr(loki, name)
        if path is not None and not os.access(path, os.R_OK):
            yield (name,), f"{path} cannot be read; write a readable file"


def _check_metrics(metrics: Metrics) -> Findings:
    if metrics.address is not None:
        try:
            address = parse_address(metrics.address)
        except ValueError as error:
            yield ("address",), str(error)
        else:
            if address.scheme not in ("tcp", "unix"):
                yield ("address",), f"{address.scheme} cannot serve metrics; write tcp or unix"
            elif address.is_path:
                yield from _check_new_file(address.location, ("address",), demand_socket_place)
    if metrics.textfile is not None:
        yield from _check_new_file(metrics.textfile, ("textfile",), demand_directory)
        if not metrics.textfile.endswith(".prom"):
            yield (
                ("textfile",),
                f"{metrics.textfile} is not read by node_exporter; write a name that ends in .prom",
            )
