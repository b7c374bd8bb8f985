"""A service checked whole, before anything is started."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

from pyforkfd._targets import is_target

from ._address import Address, parse_address
from ._check_component import NAME, Found, check_component, mode_problem
from ._privileges import Holder, user_entry
from ._reader import Reader, fields_of
from ._spec import Component, Control, Listener, Log, Loki, Metrics, Problem, Service, ZygoteSpec

Place: TypeAlias = tuple[str | int, ...]
T = TypeVar("T")

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def validate(
    service: Service, *, unread: frozenset[str] = frozenset(), holder: Holder | None = None
) -> list[Problem]:
    """Find everything that is wrong with a service, here and now.

    Looks up users, programs, directories and what the supervisor may do; opens no more than
    the files of filters, and changes nothing.

    Args:
        service: values of wrong types are found too; the rest of their component is then
            not looked at.
        unread: names of listeners and zygotes that a file has, but wrongly: they are known,
            and not missed.
        holder: who will start the workers; None is the calling process.

    Returns:
        The problems; none: it can be started.
    """
    reader = Reader(units=False)
    for name, annotation in fields_of(Service).items():
        reader.read(getattr(service, name), annotation, (name,))
    mistyped = [problem.place for problem in reader.problems]
    if any(len(place) < 2 for place in mistyped):
        return reader.problems
    holder = holder or Holder.now()
    sound = dataclasses.replace(
        service,
        components=_without(service.components, "components", mistyped),
        listeners=_without(service.listeners, "listeners", mistyped),
        zygotes=_without(service.zygotes, "zygotes", mistyped),
    )
    unread |= {str(place[1]) for place in mistyped}
    found = list(reader.problems)
    for place, text in _all(sound, holder, unread, {str(place[0]) for place in mistyped}):
        found.append(Problem(place=place, text=text))
    return found


def _without(things: Mapping[str, T], kind: str, wrong: list[Place]) -> Mapping[str, T]:
    bad = {place[1] for place in wrong if place[0] == kind}
    return {name: thing for name, thing in things.items() if name not in bad}


def _all(
    service: Service, holder: Holder, unread: frozenset[str], mistyped: set[str]
) -> Iterator[tuple[Place, str]]:
    yield from _service(service, unread)
    for kind in ("components", "listeners", "zygotes"):
        for name, thing in getattr(service, kind).items():
            if thing.name != name:
                yield (kind, name, "name"), f'is "{thing.name}", and the key is "{name}"'
            if not NAME.fullmatch(name):
                yield (
                    (kind, name),
                    (
                        "a name has up to 64 letters, digits and _ . @ -, and begins with neither "
                        "of the last three"
                    ),
                )
    for name, component in service.components.items():
        for place, text in check_component(component, service, holder, unread):
            yield ("components", name, *place), text
    for name, listener in service.listeners.items():
        for place, text in _listener(listener):
            yield ("listeners", name, *place), text
    yield from _addresses(service)
    if not unread:
        yield from _shares(service)
    for name, zygote in service.zygotes.items():
        for place, text in _zygote(zygote):
            yield ("zygotes", name, *place), text
    if "control" not in mistyped:
        yield from _control(service.control)
    if "log" not in mistyped:
        yield from _log(service.log, service.components)
    if "metrics" not in mistyped:
        yield from _metrics(service.metrics)


def _service(s: Service, unread: frozenset[str]) -> Found:
    if not NAME.fullmatch(s.name):
        yield ("name",), f'"{s.name}" is not up to 64 letters, digits and _ . @ -'
    if not s.components and not unread:
        yield ("components",), "there is none: nothing to run"
    if not (math.isfinite(s.rollback) and s.rollback >= 0):
        yield ("rollback",), f"{s.rollback} is not 0 or more"
    if s.max_generations < 2:
        yield (
            ("max_generations",),
            f"{s.max_generations}: a reload needs two, the one that comes and the one that goes",
        )
    if s.rollback > 0:
        for name, component in s.components.items():
            if not component.can_pause:
                yield (
                    ("rollback",),
                    (
                        f'components.{name} cannot pause: readiness = "{component.readiness}" is '
                        "for a program that does not speak to us"
                    ),
                )


def _listener(listener: Listener) -> Found:
    try:
        address = parse_address(listener.address)
    except ValueError as error:
        yield ("address",), str(error)
        return
    if listener.backlog < 1:
        yield ("backlog",), f"{listener.backlog} is not above 0"
    if listener.shards and not address.is_internet:
        yield ("shards",), f"are for tcp and udp, not {address.scheme}"
    if listener.mode is not None and not address.is_path:
        yield ("mode",), "only a path has a mode"
    if text := mode_problem(listener.mode):
        yield ("mode",), text
    if listener.ipv6_only and (
        not address.is_internet or (address.where and ":" not in address.where)
    ):
        yield ("ipv6_only",), f"{listener.address} is not IPv6"
    if address.is_path:
        yield from _place_for(address.where, ("address",))


def _place_for(path: str, place: Place) -> Found:
    """A file can be made there, as far as can be seen."""
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        yield place, f"{path} is a directory"
    elif not os.path.isdir(directory):
        yield place, f"{directory} is not a directory"
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield place, f"the supervisor may not write to {directory}"


def _addresses(s: Service) -> Iterator[tuple[Place, str]]:
    """What can be bound only once is asked for once."""
    asked: list[tuple[Place, Address]] = []
    texts: list[tuple[Place, str]] = [
        (("listeners", name, "address"), listener.address) for name, listener in s.listeners.items()
    ]
    if s.metrics.address is not None:
        texts.append((("metrics", "address"), s.metrics.address))
    if s.control.path is not None:
        texts.append((("control", "path"), f"unix:{s.control.path}"))
    for place, text in texts:
        try:
            asked.append((place, parse_address(text)))
        except ValueError:
            continue  # said where it stands
    for (before, one), (after, other) in itertools.combinations(asked, 2):
        if one.clashes(other):
            yield after, f"is taken by {'.'.join(map(str, before))}"


def _shares(s: Service) -> Iterator[tuple[Place, str]]:
    """Every listener has somebody who listens; a shard has one owner."""
    for name, listener in s.listeners.items():
        users = [c.name for c in s.components.values() if name in c.listen]
        if not users:
            yield (
                ("listeners", name),
                "no component listens on it: who connects would wait for ever",
            )
        if listener.shards and len(users) > 1:
            yield (
                ("listeners", name, "shards"),
                f"one shard for each worker, and {' and '.join(users)} both have workers",
            )


def _zygote(zygote: ZygoteSpec) -> Found:
    for index, module in enumerate(zygote.preload):
        if not all(part.isidentifier() for part in module.split(".")):
            yield ("preload", index), f'"{module}" is not the name of a module'
    if zygote.setup is not None and not is_target(zygote.setup):
        yield ("setup",), f'"{zygote.setup}" is not "package.module:function"'
    for name in zygote.env or {}:
        if not name or "=" in name:
            yield ("env", name), f'"{name}" cannot be the name of a variable'


def _control(control: Control) -> Iterator[tuple[Place, str]]:
    if text := mode_problem(control.mode):
        yield ("control", "mode"), text
    if control.path is not None:
        try:
            parse_address(f"unix:{control.path}")
        except ValueError as error:
            yield ("control", "path"), str(error)
        else:
            if not control.path.startswith("@"):
                yield from _place_for(control.path, ("control", "path"))
    elif control.allow_users:
        yield ("control", "allow_users"), "there is no socket: path is not said"
    for index, user in enumerate(control.allow_users):
        try:
            user_entry(user)
        except (LookupError, OverflowError) as error:
            yield ("control", "allow_users", index), str(error.args[0])


def _log(log: Log, components: Mapping[str, Component]) -> Iterator[tuple[Place, str]]:
    if log.path is not None:
        yield from _place_for(log.path, ("log", "path"))
    else:
        for name in ("max_bytes", "dsync"):
            if getattr(log, name):
                yield ("log", name), "is for a file, and there is no path"
    if log.max_bytes is not None and log.max_bytes <= 0:
        yield ("log", "max_bytes"), f"{log.max_bytes} is not above 0"
    if log.keep < 1:
        yield ("log", "keep"), f"{log.keep} is not above 0"
    if text := mode_problem(log.mode):
        yield ("log", "mode"), text
    if log.path is None and not log.stdout and log.loki is None:
        for name, component in components.items():
            if "capture" in (component.stdout, component.stderr):
                yield ("log",), f"has no sink, and the output of components.{name} goes to it"
    if log.loki is not None:
        for place, text in _loki(log.loki):
            yield ("log", "loki", *place), text


def _loki(loki: Loki) -> Found:
    try:
        url = urlsplit(loki.url)
        _ = url.port
    except ValueError as error:
        yield ("url",), f'"{loki.url}": {error}'
    else:
        if url.scheme not in ("http", "https") or not url.hostname:
            yield ("url",), f'"{loki.url}" is not http://HOST or https://HOST'
        if url.username is not None or url.password is not None:
            yield ("url",), "no password belongs in there; user and password_file have it"
    if not loki.labels and not loki.static_labels:
        yield ("labels",), "a stream has at least one"
    for name in loki.static_labels:
        if not _LABEL.fullmatch(name):
            yield ("static_labels", name), f'"{name}" is not a letter or _, then those and digits'
    for name in ("tenant", "user"):
        text = getattr(loki, name)
        if text is not None and not (text.isascii() and text.isprintable()):
            yield (name,), f"{text!r} goes into a header: printable ASCII"
    if loki.user is not None and loki.token_file is not None:
        yield ("token_file",), "there is a user as well: one way to say who we are"
    if (loki.user is None) is not (loki.password_file is None):
        missing = "user" if loki.user is None else "password_file"
        yield (missing,), "user and password_file go together"
    for name in ("password_file", "token_file", "ca_file"):
        path = getattr(loki, name)
        if path is not None and not os.access(path, os.R_OK):
            yield (name,), f"{path} cannot be read"
    for name in ("batch_bytes", "batch_seconds", "timeout", "buffer"):
        value = cast(float, getattr(loki, name))
        if not (math.isfinite(value) and value > 0):
            yield (name,), f"{value} is not above 0"
    for name in ("retries", "backoff", "backoff_cap"):
        value = cast(float, getattr(loki, name))
        if not (math.isfinite(value) and value >= 0):
            yield (name,), f"{value} is not 0 or more"


def _metrics(metrics: Metrics) -> Iterator[tuple[Place, str]]:
    if metrics.address is not None:
        try:
            scheme = parse_address(metrics.address).scheme
        except ValueError as error:
            yield ("metrics", "address"), str(error)
        else:
            if scheme not in ("tcp", "unix"):
                yield ("metrics", "address"), f"is tcp or unix, not {scheme}"
    if metrics.textfile is not None:
        yield from _place_for(metrics.textfile, ("metrics", "textfile"))
        if not metrics.textfile.endswith(".prom"):
            yield ("metrics", "textfile"), "node_exporter reads files that end in .prom only"
    if not (math.isfinite(metrics.interval) and metrics.interval > 0):
        yield ("metrics", "interval"), f"{metrics.interval} is not above 0"
