"""Checks of one component: its own values, and the listeners and zygote that it names."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from pyforkfd._entry_points import is_entry_point
from pyforkfd._trust import UntrustedPathError
from pyforkfd._trusted_files import demand_trusted_program

from ._address import parse_address
from ._bounds import MOST_LISTENERS
from ._privileges import (
    Holder,
    both_limits,
    capability_number,
    environment,
    find_program,
    group_number,
    is_already,
    read_filter,
    user_entry,
)
from ._problems import Findings, Place
from ._reader import nearest
from ._spec import Component, Limits, Privileges, Service
from ._units import UNLIMITED, rlimit_number

_RESERVED = {"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"}
_RESERVED |= {"NOTIFY_SOCKET", "FORKFD_WORKER"}
_MOST_DESCRIPTORS = 1024  # what select(2) can watch, and the usual soft limit
MOST_IDS = 2**32 - 1  # of users and groups
_CONNECTED = ("tcp", "unix", "unixpacket", "vsock", "systemd")


def check_component(
    component: Component, service: Service, holder: Holder, unread: frozenset[str]
) -> Findings:
    """Find the problems of a component whose values have the right types.

    Args:
        component: borrowed from the service.
        service: has the listeners and zygotes that the component may name.
        holder: the process that will start the workers.
        unread: names of listeners and zygotes that exist, but could not be read.

    Yields:
        Place within the component, and the problem.
    """
    if len(component.listen) > MOST_LISTENERS:
        yield ("listen",), f"has {len(component.listen)} listeners; write at most {MOST_LISTENERS}"
        return
    yield from _check_program(component, service, unread)
    yield from _check_listeners(component, service, unread)
    yield from _check_readiness(component, service)
    yield from _check_pairs(component)
    yield from _check_signals(component)
    yield from _check_resources(component)
    yield from _check_identity(component.privileges, holder)
    yield from _check_confinement(component.privileges, holder)
    yield from check_environment(component.env)
    for name in sorted(_RESERVED.intersection(component.env or {})):
        yield ("env", name), "is set by the supervisor for each worker; remove it"
    for index, hook in enumerate(component.on_crash):
        if not hook:
            yield ("on_crash", index), "is empty; write a function or a command"
        elif isinstance(hook, str):
            if text := check_target(hook):
                yield ("on_crash", index), f"{text}; a command is an array"
        else:
            try:
                demand_trusted_program(hook[0], os.environ.get("PATH"))
            except UntrustedPathError as error:
                yield ("on_crash", index), f"root would execute it: {error}"


def check_target(text: str) -> str | None:
    """Return the problem of a function's name; None: it is ``package.module:function``."""
    if is_entry_point(text):
        return None
    return f'"{text}" is not a function; write "package.module:function"'


def check_environment(variables: Mapping[str, str] | None) -> Findings:
    """Find the names that no variable can have."""
    for name in variables or {}:
        if not name or "=" in name:
            yield ("env", name), f'"{name}" is not the name of a variable; write one without "="'


def _check_program(component: Component, service: Service, unread: frozenset[str]) -> Findings:
    command, function = component.command, component.function
    if command is None and function is None:
        yield (), "has neither a command nor a function; write one of them"
    if command is not None and function is not None:
        yield ("function",), "a command is set as well; write only one of them"
    if function is None:
        for name in ("args", "kwargs", "zygote"):
            if getattr(component, name):
                yield (name,), "needs a function; the arguments of a command are part of it"
    elif text := check_target(function):
        yield ("function",), text
    zygote = component.zygote
    if zygote is not None and zygote not in {*service.zygotes, *unread}:
        yield ("zygote",), f'there is no zygote "{zygote}"{nearest(zygote, service.zygotes)}'
    if command is not None:
        if not command or not command[0]:
            yield ("command",), "is empty; write the program and its arguments"
        else:
            yield from _check_executable(component, command[0])
    if component.cwd is not None:
        root = component.privileges.chroot
        directory = component.cwd
        if root:
            directory = os.path.join(root, directory.lstrip("/"))
        if not os.path.isdir(directory):
            yield ("cwd",), f"{directory} is not a directory; create it, or write another"


def _check_executable(component: Component, program: str) -> Findings:
    path = environment(component, os.environ).get("PATH", os.defpath)
    root = component.privileges.chroot
    cwd = component.cwd or ("/" if root else os.getcwd())
    try:
        find_program(program, path, root or "/", cwd)
    except OSError as error:
        hint = "; write its arguments as further elements" if " " in program else ""
        yield ("command",), f'"{program}": {error.strerror} ({error.filename}){hint}'


def _check_listeners(component: Component, service: Service, unread: frozenset[str]) -> Findings:
    for index, name in enumerate(component.listen):
        if name not in service.listeners and name not in unread:
            hint = nearest(name, service.listeners)
            yield ("listen", index), f'there is no listener "{name}"{hint}'
        elif name in component.listen[:index]:
            yield ("listen", index), f'"{name}" is listed twice; remove one'
    if component.give == "numbers":
        yield from _check_numbers(component)
    elif component.numbers is not None:
        yield ("numbers",), f'needs give = "numbers", and it is "{component.give}"; remove this'


def _check_numbers(component: Component) -> Findings:
    numbers = component.numbers or {}
    for name in sorted({*component.listen} - {*numbers}):
        yield ("numbers",), f'has no number for listener "{name}"; add one'
    owners: dict[int, str] = {}
    for name, number in numbers.items():
        place = ("numbers", name)
        if name not in component.listen:
            yield place, f'"{name}" is not in listen; add it there, or remove it here'
        if 0 <= number <= 2:
            yield place, f"{number} is a standard stream; write 3 or more"
        elif not 0 <= number < _MOST_DESCRIPTORS:
            yield place, f"{number} is out of range; write 3 to {_MOST_DESCRIPTORS - 1}"
        elif number in owners:
            yield place, f'{number} is the number of "{owners[number]}"; write another'
        owners.setdefault(number, name)


def _check_readiness(component: Component, service: Service) -> Findings:
    if component.readiness == "notify":
        return
    if component.readiness == "accept":
        schemes = set(_schemes(component, service))
        if not component.listen:
            yield ("readiness",), '"accept" needs a listener; add one, or write "started"'
        elif schemes and schemes.isdisjoint(_CONNECTED):
            yield (
                ("readiness",),
                '"accept" needs connections, and all listeners take datagrams; write "started"',
            )
    why = f'needs readiness = "notify", and it is "{component.readiness}"'
    if component.heartbeat.required:
        yield ("heartbeat", "required"), f"{why}: the worker never beats; remove this"
    if component.recycle.requests is not None:
        yield ("recycle", "requests"), f"{why}: requests are not counted; remove this"


def _schemes(component: Component, service: Service) -> Iterator[str]:
    for name in component.listen:
        if name in service.listeners:
            try:
                yield parse_address(service.listeners[name].address).scheme
            except ValueError:  # reported at the listener; it may be any
                yield "systemd"


def _check_pairs(component: Component) -> Findings:
    """Find times and sizes that do not fit one another."""
    restart, heartbeat = component.restart, component.heartbeat
    if 0 <= restart.backoff_cap < restart.backoff:
        yield (
            ("restart", "backoff_cap"),
            f"{restart.backoff_cap} is below backoff, {restart.backoff}; write more",
        )
    if 0 < heartbeat.stale_after <= heartbeat.interval:
        yield (
            ("heartbeat", "stale_after"),
            (
                f"{heartbeat.stale_after} is not above interval, {heartbeat.interval}: between two "
                "checks every worker would be stale; write more"
            ),
        )
    most, guard = component.limits.memory_max, component.memory_guard
    bounds = {("recycle", "memory"): component.recycle.memory}
    if guard is not None:
        bounds = {("memory_guard", "high"): guard.high, **bounds}
    for place, size in bounds.items():
        if most is not None and size is not None and size >= most:
            yield (
                place,
                (
                    f"{size} is not below limits.memory_max, {most}: the kernel kills first; "
                    "write less"
                ),
            )


def _check_signals(component: Component) -> Findings:
    for name in ("stop_signal", "dump_signal", "reload_signal"):
        signum = getattr(component, name)
        if signum is None:
            continue
        if signum not in signal.valid_signals():
            yield (name,), f"{signum} is not a signal; write 1 to {signal.SIGRTMAX}"
        elif signum in (signal.SIGKILL, signal.SIGSTOP):
            yield (
                (name,),
                (
                    f"{signal.Signals(signum).name} cannot be caught; write another: "
                    "SIGKILL follows by itself after stop_timeout"
                ),
            )
    if component.reload_signal is not None and component.reload_signal == component.stop_signal:
        yield (
            ("reload_signal",),
            "is the stop_signal as well: a reload would end the worker; write another",
        )


def _check_resources(component: Component) -> Findings:
    processors = os.sysconf("SC_NPROCESSORS_CONF")
    if component.cpu_affinity is not None and not component.cpu_affinity:
        yield ("cpu_affinity",), f"names no processor; write some of 0 to {processors - 1}"
    for index, cpu in enumerate(component.cpu_affinity or ()):
        if not 0 <= cpu < processors:
            yield (
                ("cpu_affinity", index),
                f"{cpu} is not a processor of this machine; write 0 to {processors - 1}",
            )
    for name, value in (component.rlimits or {}).items():
        place = ("rlimits", name)
        try:
            rlimit_number(name)
        except ValueError as error:
            yield place, str(error)
        soft, hard = both_limits(value)
        if min(soft, hard) < UNLIMITED:
            yield place, f"{min(soft, hard)} is negative; write -1 for no limit"
        elif hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
            yield place, f"the soft limit, {soft}, is above the hard one, {hard}; write less"
    if component.cgroup == "off":
        if component.limits != Limits():
            yield ("limits",), 'needs a cgroup, and cgroup = "off"; remove one of them'
        if component.pressure.wanted():
            yield ("pressure",), 'needs a cgroup, and cgroup = "off"; remove one of them'


def _check_identity(privileges: Privileges, holder: Holder) -> Findings:
    unknown = list(_unknown_names(privileges))
    for key, text in unknown:
        yield ("privileges", *key), text
    if unknown or is_already(privileges, holder):
        return
    if "user" in privileges.namespaces:
        yield (
            ("privileges", "user"),
            (
                "a new user namespace has no map, and so no user or group to change to; remove "
                '"user" from namespaces'
            ),
        )
    elif not (holder.may("SETUID") and holder.may("SETGID")):
        set_ones = (
            n for n in ("user", "group", "extra_groups") if getattr(privileges, n) is not None
        )
        yield (
            ("privileges", next(set_ones)),
            (
                "the supervisor has no CAP_SETUID and CAP_SETGID to change to another; start it as "
                "root, or remove this"
            ),
        )


def _unknown_names(privileges: Privileges) -> Findings:
    """Find users and groups that do not exist."""
    user, group = privileges.user, privileges.group
    lookups: list[tuple[Place, str | int | None, Callable[..., object]]] = [
        (("user",), user, user_entry),
        (("group",), group, group_number),
    ]
    for index, extra in enumerate(privileges.extra_groups or ()):
        lookups.append((("extra_groups", index), extra, group_number))
    for place, name, look_up in lookups:
        if isinstance(name, int) and not 0 <= name < MOST_IDS:
            yield place, f"{name} is not an id; write 0 to {MOST_IDS - 1}"
        elif name is not None:
            try:
                look_up(name)
            except LookupError as error:
                yield place, str(error.args[0])
    is_bare_id = isinstance(user, int) and 0 <= user < MOST_IDS
    if is_bare_id and group is None and user_entry(cast(int, user)) is None:
        yield ("user",), f"{user} is not in the user database; write a group as well"


def _check_confinement(privileges: Privileges, holder: Holder) -> Findings:
    inside = "user" in privileges.namespaces  # who makes one has all capabilities inside
    for index, name in enumerate(privileges.capabilities or ()):
        place = ("privileges", "capabilities", index)
        try:
            number = capability_number(name)
        except ValueError as error:
            yield place, str(error)
            continue
        if not inside and number not in holder.permitted:
            yield place, f"the supervisor does not have {name} and cannot give it; remove it"
    if privileges.namespaces and not inside and not holder.may("SYS_ADMIN"):
        yield (
            ("privileges", "namespaces"),
            'the supervisor has no CAP_SYS_ADMIN to create these; add "user", or start it as root',
        )
    if privileges.chroot is not None:
        if not os.path.isdir(privileges.chroot):
            yield ("privileges", "chroot"), f"{privileges.chroot} is not a directory"
        if not inside and not holder.may("SYS_CHROOT"):
            yield (
                ("privileges", "chroot"),
                "the supervisor has no CAP_SYS_CHROOT; start it as root, or remove this",
            )
    if privileges.seccomp is not None:
        try:
            read_filter(privileges.seccomp)
        except OSError as error:
            yield ("privileges", "seccomp"), f"{privileges.seccomp}: {error.strerror}"
        except ValueError as error:
            yield ("privileges", "seccomp"), str(error)
        if not privileges.no_new_privs:
            yield (
                ("privileges", "no_new_privs"),
                "a seccomp filter needs it, seccomp(2); write true",
            )
