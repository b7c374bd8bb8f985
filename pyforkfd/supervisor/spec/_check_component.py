"""What is wrong with one component, by itself and with what it names."""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import TypeAlias, cast

from pyforkfd._targets import is_target

from ._address import parse_address
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
from ._reader import nearest
from ._spec import Component, Privileges, Service
from ._units import UNLIMITED, rlimit_number

Place: TypeAlias = tuple[str | int, ...]
Found: TypeAlias = Iterator[tuple[Place, str]]
"""Place within the component, and what is wrong there."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
"""Of a component or listener: in FORKFD_WORKER, LISTEN_FDNAMES, labels and file names."""
_RESERVED = {"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"}
_RESERVED |= {"NOTIFY_SOCKET", "FORKFD_WORKER"}
_MOST_DESCRIPTORS = 1024  # what select(2) can watch, and the usual soft limit
_CONNECTED = ("tcp", "unix", "unixpacket", "vsock", "systemd")


def check_component(
    component: Component, service: Service, holder: Holder, unread: frozenset[str]
) -> Found:
    """All that is wrong, where all values have the right types."""
    yield from _program(component, service, unread)
    yield from _listening(component, service, unread)
    yield from _times(component)
    yield from _signals(component)
    yield from _resources(component)
    yield from _confinement(component, holder)
    yield from _environment(component)
    for index, hook in enumerate(component.on_crash):
        if isinstance(hook, str) and not is_target(hook):
            yield (
                ("on_crash", index),
                f'"{hook}" is not "package.module:function"; a command is an array',
            )
        elif not hook:
            yield ("on_crash", index), "is empty"


def _program(c: Component, service: Service, unread: frozenset[str]) -> Found:
    if c.workers < 0:
        yield ("workers",), f"{c.workers} is negative; 0 starts none until it is scaled"
    if c.command is None and c.function is None:
        yield (), "has neither a command nor a function"
    if c.command is not None and c.function is not None:
        yield ("function",), "there is a command as well: a worker is one or the other"
    if c.function is None:
        for name in ("args", "kwargs", "zygote"):
            if getattr(c, name):
                yield (name,), "is for a function; the arguments of a command are in it"
    elif not is_target(c.function):
        yield ("function",), f'"{c.function}" is not "package.module:function"'
    if c.zygote is not None and c.zygote not in {*service.zygotes, *unread}:
        hint = nearest(c.zygote, service.zygotes)
        yield ("zygote",), f'there is no zygote "{c.zygote}"{hint}'
    if c.command is not None:
        if not c.command or not c.command[0]:
            yield ("command",), "is empty; the program's name is wanted at least"
        else:
            yield from _executable(c, c.command[0])
    directory = _inside(c, c.cwd or "/")
    if c.cwd is not None and not os.path.isdir(directory):
        yield ("cwd",), f"{directory} is not a directory"


def _inside(c: Component, path: str) -> str:
    """A path of the worker's, as we see it."""
    root = c.privileges.chroot
    return os.path.join(root, path.lstrip("/")) if root else path


def _executable(c: Component, program: str) -> Found:
    path = environment(c, os.environ).get("PATH", os.defpath)
    root = c.privileges.chroot or "/"
    try:
        find_program(program, path, root, c.cwd or ("/" if c.privileges.chroot else os.getcwd()))
    except OSError as error:
        hint = ""
        if " " in program:
            hint = ": it is one word, arguments are further elements"
        yield ("command",), f'"{program}": {error.strerror} ({error.filename}){hint}'


def _listening(c: Component, service: Service, unread: frozenset[str]) -> Found:
    for index, name in enumerate(c.listen):
        if name not in service.listeners and name not in unread:
            hint = nearest(name, service.listeners)
            yield ("listen", index), f'there is no listener "{name}"{hint}'
        elif name in c.listen[:index]:
            yield ("listen", index), f'"{name}" is there twice'
    if c.give == "numbers":
        yield from _numbers(c)
    elif c.numbers is not None:
        yield ("numbers",), f'are for give = "numbers", which is "{c.give}"'
    schemes = set()
    for name in c.listen:
        if name in service.listeners:
            try:
                schemes.add(parse_address(service.listeners[name].address).scheme)
            except ValueError:
                schemes.add("systemd")  # said where it stands: nothing is known of it
    if c.readiness == "accept":
        if not c.listen:
            yield ("readiness",), '"accept" without a listener: nothing is ever accepted'
        elif schemes and schemes.isdisjoint(_CONNECTED):
            yield ("readiness",), '"accept" with datagrams alone: nothing is ever accepted'
    if c.readiness != "notify":
        why = f'readiness = "{c.readiness}" is for a program that does not speak to us'
        if c.heartbeat.required:
            yield ("heartbeat", "required"), f"{why}, so it never beats"
        if c.recycle.requests is not None:
            yield ("recycle", "requests"), f"{why}, so its requests are not counted"


def _numbers(c: Component) -> Found:
    numbers = c.numbers or {}
    for name in sorted({*c.listen} - {*numbers}):
        yield ("numbers",), f'has no number for listener "{name}"'
    taken: dict[int, str] = {}
    for name, number in numbers.items():
        if name not in c.listen:
            yield ("numbers", name), f'its workers do not get a listener "{name}"'
        if 0 <= number <= 2:
            yield ("numbers", name), f"{number} is a standard stream; 3 is the first that is free"
        elif not 0 <= number < _MOST_DESCRIPTORS:
            yield ("numbers", name), f"{number} is not within 3 to {_MOST_DESCRIPTORS - 1}"
        elif number in taken:
            yield ("numbers", name), f'{number} is that of "{taken[number]}"'
        taken.setdefault(number, name)


def _times(c: Component) -> Found:
    wanted: list[tuple[tuple[str, ...], float | None, Callable[[float], bool], str]] = [
        (("boot_timeout",), c.boot_timeout, _positive, "above 0"),
        (("drain_timeout",), c.drain_timeout, _not_negative, "0 or more"),
        (("stop_timeout",), c.stop_timeout, _not_negative, "0 or more"),
        (("restart", "backoff"), c.restart.backoff, _not_negative, "0 or more"),
        (("restart", "backoff_cap"), c.restart.backoff_cap, _not_negative, "0 or more"),
        (("restart", "max_restarts"), c.restart.max_restarts, _not_negative, "0 or more"),
        (("restart", "within"), c.restart.within, _positive, "above 0"),
        (("recycle", "requests"), c.recycle.requests, _positive, "above 0"),
        (("recycle", "age"), c.recycle.age, _positive, "above 0"),
        (("recycle", "memory"), c.recycle.memory, _positive, "above 0"),
        (("recycle", "jitter"), c.recycle.jitter, lambda v: 0 <= v < 1, "from 0 to below 1"),
        (("heartbeat", "interval"), c.heartbeat.interval, _positive, "above 0"),
        (("heartbeat", "stale_after"), c.heartbeat.stale_after, _positive, "above 0"),
    ]
    for place, value, fits, what in wanted:
        if value is not None and not (math.isfinite(value) and fits(value)):
            yield place, f"{value} is not {what}"
    if 0 <= c.restart.backoff_cap < c.restart.backoff:
        yield (
            ("restart", "backoff_cap"),
            f"{c.restart.backoff_cap} is below backoff, {c.restart.backoff}",
        )
    if 0 < c.heartbeat.stale_after <= c.heartbeat.interval:
        yield (
            ("heartbeat", "stale_after"),
            (
                f"{c.heartbeat.stale_after} is not above interval, {c.heartbeat.interval}: "
                "between two looks every worker would be stale"
            ),
        )


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _signals(c: Component) -> Found:
    for name in ("stop_signal", "dump_signal", "reload_signal"):
        number = getattr(c, name)
        if number is None:
            continue
        if number not in signal.valid_signals():
            yield (name,), f"{number} is not a signal"
        elif number in (signal.SIGKILL, signal.SIGSTOP):
            yield (
                (name,),
                (
                    f"{signal.Signals(number).name} cannot be caught; "
                    "SIGKILL follows by itself after stop_timeout"
                ),
            )
    if c.reload_signal is not None and c.reload_signal == c.stop_signal:
        yield ("reload_signal",), "is the stop_signal as well: a reload would end the worker"


def _resources(c: Component) -> Found:
    if c.umask is not None and not 0 <= c.umask <= 0o777:
        yield ("umask",), _mode_text(c.umask)
    if c.nice is not None and not -20 <= c.nice <= 19:
        yield ("nice",), f"{c.nice} is not within -20 to 19"
    processors = os.sysconf("SC_NPROCESSORS_CONF")
    if c.cpu_affinity is not None and not c.cpu_affinity:
        yield ("cpu_affinity",), "names no processor"
    for index, cpu in enumerate(c.cpu_affinity or ()):
        if not 0 <= cpu < processors:
            yield ("cpu_affinity", index), f"{cpu}: this machine has 0 to {processors - 1}"
    for name, value in (c.rlimits or {}).items():
        try:
            rlimit_number(name)
        except ValueError as error:
            yield ("rlimits", name), str(error)
        soft, hard = both_limits(value)
        if min(soft, hard) < UNLIMITED:
            yield ("rlimits", name), f"{min(soft, hard)} is negative; -1 is no limit"
        elif hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
            yield ("rlimits", name), f"the soft limit, {soft}, is above the hard one, {hard}"
    limits, guard = c.limits, c.memory_guard
    if c.cgroup == "off" and limits != type(limits)():
        yield ("limits",), 'are those of a cgroup, and cgroup = "off"'
    if c.cgroup == "off" and c.pressure.wanted():
        yield ("pressure",), 'is that of a cgroup, and cgroup = "off"'
    most = limits.memory_max
    if most is not None and guard is not None and guard.high >= most:
        yield (
            ("memory_guard", "high"),
            f"{guard.high} is not below limits.memory_max, {most}: the kernel kills first",
        )
    if most is not None and c.recycle.memory is not None and c.recycle.memory >= most:
        yield (
            ("recycle", "memory"),
            f"{c.recycle.memory} is not below limits.memory_max, {most}: the kernel kills first",
        )


def mode_problem(mode: int | None) -> str | None:
    """What is wrong with permissions, if anything."""
    return None if mode is None or 0 <= mode <= 0o777 else _mode_text(mode)


def _mode_text(mode: int) -> str:
    hint = f"; write 0o{mode}" if re.fullmatch("[0-7]{1,3}", str(mode)) else ""
    return f"{mode} is not within 0o777{hint}"


def _confinement(c: Component, holder: Holder) -> Found:
    p = c.privileges
    inside = "user" in p.namespaces
    unknown = list(_unknown(p))
    for place, text in unknown:
        yield ("privileges", *place), text
    if not unknown:
        already = is_already(p, holder)
        if not already and inside:
            yield (
                ("privileges", "user"),
                "no user or group can be changed to in a new user namespace, which has no map",
            )
        elif not already and not (holder.may("SETUID") and holder.may("SETGID")):
            key = "user" if p.user is not None else "group" if p.group is not None else ""
            yield (
                ("privileges", key or "extra_groups"),
                "the supervisor cannot change to another: it lacks CAP_SETUID or CAP_SETGID",
            )
    for index, name in enumerate(p.capabilities or ()):
        try:
            number = capability_number(name)
        except ValueError as error:
            yield ("privileges", "capabilities", index), str(error)
            continue
        if not inside and number not in holder.permitted:
            yield (
                ("privileges", "capabilities", index),
                f"the supervisor does not have {name} and cannot give it",
            )
    if p.namespaces and not inside and not holder.may("SYS_ADMIN"):
        yield (
            ("privileges", "namespaces"),
            'only CAP_SYS_ADMIN makes these, or "user" among them; the supervisor lacks it',
        )
    if p.chroot is not None:
        if not os.path.isdir(p.chroot):
            yield ("privileges", "chroot"), f"{p.chroot} is not a directory"
        if not inside and not holder.may("SYS_CHROOT"):
            yield ("privileges", "chroot"), "the supervisor lacks CAP_SYS_CHROOT"
    if p.seccomp is not None:
        try:
            read_filter(p.seccomp)
        except OSError as error:
            yield ("privileges", "seccomp"), f"{p.seccomp}: {error.strerror}"
        except ValueError as error:
            yield ("privileges", "seccomp"), str(error)
        if not p.no_new_privs:
            yield ("privileges", "no_new_privs"), "a seccomp filter needs it, seccomp(2)"


def _unknown(p: Privileges) -> Found:
    """Users and groups that are not there."""
    named: list[tuple[Place, str | int | None, Callable[..., object]]] = [
        (("user",), p.user, user_entry),
        (("group",), p.group, group_number),
        *(
            (("extra_groups", i), group, group_number)
            for i, group in enumerate(p.extra_groups or ())
        ),
    ]
    for place, name, look_up in named:
        if isinstance(name, int) and not 0 <= name < 2**32 - 1:
            yield place, f"{name} is not an id"
        elif name is not None:
            try:
                look_up(name)
            except LookupError as error:
                yield place, str(error.args[0])
    is_bare_id = isinstance(p.user, int) and 0 <= p.user < 2**32 - 1
    if is_bare_id and p.group is None and user_entry(cast(int, p.user)) is None:
        yield ("user",), f"{p.user} is not in the user database: say group as well"


def _environment(c: Component) -> Found:
    for name in c.env or {}:
        if not name or "=" in name:
            yield ("env", name), f'"{name}" cannot be the name of a variable'
        elif name in _RESERVED:
            yield ("env", name), "is what the supervisor tells the worker"
