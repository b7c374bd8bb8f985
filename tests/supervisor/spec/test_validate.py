"""Every problem of a service is found before anything starts."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest

from pyforkfd.supervisor.spec._address import parse_address
from pyforkfd.supervisor.spec._privileges import CAPABILITIES, Holder
from pyforkfd.supervisor.spec._spec import (
    Component,
    Control,
    Heartbeat,
    Limits,
    Listener,
    Log,
    Loki,
    MemoryGuard,
    Metrics,
    Pressure,
    Privileges,
    Recycle,
    Restart,
    Service,
    SpecError,
    ZygoteSpec,
)
from pyforkfd.supervisor.spec._validate import validate

ALL = frozenset(CAPABILITIES.values())
ROOT = Holder(permitted=ALL, effective=ALL, user=0, group=0, groups=frozenset())
NOBODY = Holder(
    permitted=frozenset(), effective=frozenset(), user=65534, group=65534, groups=frozenset()
)


def web(**changes: Any) -> Component:
    return Component(**{"name": "web", "command": ("/bin/true",), "listen": ("http",)} | changes)


def http(**changes: Any) -> Listener:
    return Listener(**{"name": "http", "address": "tcp://:8080"} | changes)


def service(*parts: Component | Listener | ZygoteSpec, **changes: Any) -> Service:
    kinds: dict[str, dict[str, Any]] = {"components": {}, "listeners": {}, "zygotes": {}}
    names = {Component: "components", Listener: "listeners", ZygoteSpec: "zygotes"}
    for part in parts:
        kinds[names[type(part)]][part.name] = part
    return Service(**{"name": "shop", **kinds} | changes)


def reported(checked: Service, holder: Holder = ROOT) -> list[str]:
    return list(map(str, validate(checked, holder=holder)))


def test_nothing_is_wrong() -> None:
    assert reported(service(web(), http())) == []


W = "components.web"
H = "listeners.http"
CASES: list[tuple[Service, list[str]]] = [
    (service(), ["components: there is none, and so nothing to run; add [components.NAME]"]),
    (service(web(), http(), name="a b"), ['name: "a b" is not a name']),
    (
        service(web(), http(), rollback=-1.0),
        ["rollback: -1.0 is out of range; write seconds, 0 or more"],
    ),
    (
        service(web(), http(), max_generations=1),
        ["max_generations: 1 is out of range; write a whole number, from 2 to 100"],
    ),
    (
        service(web(readiness="accept"), http(), rollback=5.0),
        [f"rollback: {W} cannot pause: its readiness is"],
    ),
    (
        service(http(), components={"a:b": web(name="a:b"), "other": web(name="b")}),
        [
            'components.a:b: "a:b" is not a name',
            'components.other.name: is "b", and the key is "other"',
        ],
    ),
    # A command or a function.
    (service(web(command=None), http()), [f"{W}: has neither a command nor a function"]),
    (
        service(web(function="a.b", zygote="py"), http()),
        [
            f"{W}.function: a command is set as well; write only one of them",
            f'{W}.function: "a.b" is not a function',
            f'{W}.zygote: there is no zygote "py"',
        ],
    ),
    (
        service(web(args=(1,), kwargs={"a": 1}), http()),
        [f"{W}.args: needs a function", f"{W}.kwargs: needs a function"],
    ),
    (service(web(command=()), http()), [f"{W}.command: is empty"]),
    (
        service(web(command=("/bin/true --x",)), http()),
        [f'{W}.command: "/bin/true --x": there is no such program (/bin/true --x)'],
    ),
    (
        service(web(command=("true",), env={"PATH": "/nowhere"}), http()),
        [f'{W}.command: "true": there is no such program (PATH=/nowhere)'],
    ),
    (
        service(web(command=("/etc/passwd",)), http()),
        [f'{W}.command: "/etc/passwd": is not executable (/etc/passwd)'],
    ),
    (service(web(cwd="/nowhere"), http()), [f"{W}.cwd: /nowhere is not a directory"]),
    (
        service(web(on_crash=("x.y", "a:b", ("/bin/true",), ())), http()),
        [f'{W}.on_crash.0: "x.y" is not', f"{W}.on_crash.3: is empty"],
    ),
    (service(web(workers=-1), http()), [f"{W}.workers: -1 is out of range"]),
    # Listeners.
    (
        service(web(listen=("htpp", "http", "http")), http()),
        [
            f'{W}.listen.0: there is no listener "htpp"; did you mean http?',
            f'{W}.listen.2: "http" is listed twice; remove one',
        ],
    ),
    (service(web(listen=()), http()), [f"{H}: no component listens on it"]),
    (
        service(web(), web(name="b"), http(shards=True)),
        [f"{H}.shards: each worker owns a shard, and web and b both have workers"],
    ),
    (
        service(web(give="numbers"), http()),
        [f'{W}.numbers: has no number for listener "http"'],
    ),
    (
        service(
            web(listen=("http", "b"), give="numbers", numbers={"http": 2, "b": 5, "c": 5}),
            http(),
            http(name="b", address="tcp://:81"),
        ),
        [
            f"{W}.numbers.http: 2 is a standard stream",
            f'{W}.numbers.c: "c" is not in listen',
            f'{W}.numbers.c: 5 is the number of "b"; write another',
        ],
    ),
    (
        service(web(give="numbers", numbers={"http": 5000}), http()),
        [f"{W}.numbers.http: 5000 is out of range; write 3 to 1023"],
    ),
    (
        service(web(numbers={"http": 3}), http()),
        [f'{W}.numbers: needs give = "numbers", and it is "listen_fds"'],
    ),
    (
        service(web(readiness="accept", listen=())),
        [f'{W}.readiness: "accept" needs a listener'],
    ),
    (
        service(web(readiness="accept"), http(address="udp://:53")),
        [f'{W}.readiness: "accept" needs connections, and all listeners take datagrams'],
    ),
    (
        service(
            web(
                readiness="started",
                heartbeat=Heartbeat(required=True),
                recycle=Recycle(requests=5),
            ),
            http(),
        ),
        [
            f'{W}.heartbeat.required: needs readiness = "notify", and it is "started": the worker',
            f'{W}.recycle.requests: needs readiness = "notify", and it is "started": requests ar',
        ],
    ),
    (service(web(), http(address="8080")), [f'{H}.address: "8080" is not an address']),
    (
        service(web(), http(backlog=0)),
        [f"{H}.backlog: 0 is out of range; write a whole number, from 1 to 2147483647"],
    ),
    (
        service(web(), http(address="unix:@x", shards=True, mode=0o600, ipv6_only=True)),
        [
            f"{H}.shards: needs tcp or udp, and the address is unix",
            f"{H}.mode: needs a path, and the address has none; remove it",
            f"{H}.ipv6_only: unix:@x is not IPv6",
        ],
    ),
    (
        service(web(), http(address="unix:/tmp/x", mode=660)),
        [f"{H}.mode: 660 is out of range; write 0o660"],
    ),
    (
        service(web(), http(address="unix:/nowhere/x")),
        [f"{H}.address: /nowhere is not a directory"],
    ),
    (service(web(), http(address="unix:/tmp")), [f"{H}.address: /tmp is a directory"]),
    (
        service(
            web(listen=("http", "b")),
            http(),
            http(name="b", address="tcp://127.0.0.1:8080"),
            metrics=Metrics(address="tcp://[::1]:8080"),
        ),
        [
            f"listeners.b.address: is taken by {H}.address",
            f"metrics.address: is taken by {H}.address",
        ],
    ),
    # Times and signals.
    (
        service(
            web(
                boot_timeout=0.0,
                drain_timeout=-1.0,
                stop_timeout=float("inf"),
                restart=Restart(backoff=5.0, backoff_cap=1.0, max_restarts=-1, within=0.0),
                recycle=Recycle(requests=0, age=0.0, memory=0, jitter=1.0),
                heartbeat=Heartbeat(interval=2.0, stale_after=1.0),
            ),
            http(),
        ),
        [
            f"{W}.boot_timeout: 0.0 is out of range; write seconds, above 0",
            f"{W}.drain_timeout: -1.0 is out of range",
            f"{W}.stop_timeout: inf is out of range; write seconds, 0 or more",
            f"{W}.restart.max_restarts: -1 is out of range",
            f"{W}.restart.within: 0.0 is out of range; write seconds, above 0",
            f"{W}.recycle.requests: 0 is out of range",
            f"{W}.recycle.age: 0.0 is out of range; write seconds, above 0",
            f"{W}.recycle.memory: 0 is out of range; write bytes, above 0",
            f"{W}.recycle.jitter: 1.0 is out of range",
            f"{W}.restart.backoff_cap: 1.0 is below backoff, 5.0",
            f"{W}.heartbeat.stale_after: 1.0 is not above interval, 2.0",
        ],
    ),
    (
        service(web(stop_signal=signal.SIGKILL, dump_signal=99, reload_signal=None), http()),
        [f"{W}.stop_signal: SIGKILL cannot be caught", f"{W}.dump_signal: 99 is not a signal"],
    ),
    (
        service(web(reload_signal=signal.SIGTERM), http()),
        [f"{W}.reload_signal: is the stop_signal as well"],
    ),
    # Resources.
    (
        service(web(umask=1000, nice=20, cpu_affinity=(10**6,)), http()),
        [
            f"{W}.umask: 1000 is out of range",
            f"{W}.nice: 20",
            f"{W}.cpu_affinity.0: 1000000 is not a processor of this machine",
        ],
    ),
    (service(web(cpu_affinity=()), http()), [f"{W}.cpu_affinity: names no processor"]),
    (
        service(web(rlimits={"FILES": 5, "NOFILE": (5, 4), "CORE": (-1, 0), "CPU": -2}), http()),
        [
            f'{W}.rlimits.FILES: there is no resource limit "FILES"',
            f"{W}.rlimits.NOFILE: the soft limit, 5, is above the hard one, 4",
            f"{W}.rlimits.CORE: the soft limit, -1, is above the hard one, 0",
            f"{W}.rlimits.CPU: -2 is negative",
        ],
    ),
    (
        service(web(cgroup="off", limits=Limits(pids_max=5)), http()),
        [f'{W}.limits: needs a cgroup, and cgroup = "off"'],
    ),
    (
        service(web(cgroup="off", pressure=Pressure(io=0.5)), http()),
        [f'{W}.pressure: needs a cgroup, and cgroup = "off"'],
    ),
    (
        service(
            web(
                limits=Limits(memory_max=100),
                memory_guard=MemoryGuard(high=100),
                recycle=Recycle(memory=200),
            ),
            http(),
        ),
        [
            f"{W}.memory_guard.high: 100 is not below limits.memory_max, 100",
            f"{W}.recycle.memory: 200 is not below limits.memory_max, 100",
        ],
    ),
    # Privileges.
    (
        service(
            web(
                privileges=Privileges(
                    user="no-such", group="no-group", extra_groups=("root", "none", -1)
                )
            ),
            http(),
        ),
        [
            f'{W}.privileges.user: there is no user "no-such"',
            f'{W}.privileges.group: there is no group "no-group"',
            f'{W}.privileges.extra_groups.1: there is no group "none"',
            f"{W}.privileges.extra_groups.2: -1 is not an id",
        ],
    ),
    (
        service(web(privileges=Privileges(user=4_000_000)), http()),
        [f"{W}.privileges.user: 4000000 is not in the user database"],
    ),
    (
        service(web(privileges=Privileges(user=2**32, capabilities=("NET",))), http()),
        [
            f"{W}.privileges.user: 4294967296 is not an id",
            f'{W}.privileges.capabilities.0: there is no capability "NET"',
        ],
    ),
    (
        service(web(privileges=Privileges(user="nobody", namespaces=("user",))), http()),
        [f"{W}.privileges.user: a new user namespace has no map, and so no user or group to"],
    ),
    (
        service(
            web(
                privileges=Privileges(chroot="/nowhere", seccomp="/nowhere/f", no_new_privs=False),
            ),
            http(),
        ),
        [
            f'{W}.command: "/bin/true": there is no such program',
            f"{W}.privileges.chroot: /nowhere is not a directory",
            f"{W}.privileges.seccomp: /nowhere/f: No such file",
            f"{W}.privileges.no_new_privs: a seccomp filter needs it",
        ],
    ),
    (
        service(web(env={"A=B": "", "LISTEN_FDS": "1"}), http()),
        [
            f'{W}.env.A=B: "A=B" is not the name of a variable',
            f"{W}.env.LISTEN_FDS: is set by the supervisor for each worker",
        ],
    ),
    # The rest.
    (
        service(web(), http(), ZygoteSpec(name="py", preload=("a b",), setup="x", env={"": ""})),
        [
            'zygotes.py.preload.0: "a b" is not a module; write "package.module"',
            'zygotes.py.setup: "x" is not a function; write "package.module:function"',
            'zygotes.py.env.: "" is not the name of a variable; write one without "="',
        ],
    ),
    (
        service(web(), http(), control=Control(mode=600, allow_users=("no-such",))),
        [
            "control.mode: 600 is out of range; write 0o600",
            "control.allow_users: needs a socket; set path as well",
            'control.allow_users.0: there is no user "no-such"',
        ],
    ),
    (
        service(
            web(),
            http(),
            control=Control(path="relative"),
            log=Log(
                max_bytes=0,
                keep=-1,
                dsync=True,
                stdout=False,
                loki=Loki(
                    url="host:3100",
                    labels=(),
                    tenant="a\nb",
                    user="me",
                    token_file="/nowhere",
                    batch_seconds=0.0,
                    buffer=0,
                    retries=-1,
                ),
            ),
            metrics=Metrics(address="udp://:9", textfile="/tmp/x.txt", interval=0.0),
        ),
        [
            "log.max_bytes: 0 is out of range; write bytes, above 0",
            "log.keep: -1 is out of range; write a whole number, from 1 to 1000",
            "log.loki.batch_seconds: 0.0 is out of range; write seconds, above 0",
            "log.loki.retries: -1 is out of range; write a whole number, from 0 to 1000",
            "log.loki.buffer: 0 is out of range; write bytes, above 0",
            "metrics.interval: 0.0 is out of range; write seconds, above 0",
            'control.path: "unix:relative": the path is relative to where',
            "log.dsync: needs a file; set path as well",
            'log.loki.url: "host:3100" is not a URL; write http://HOST or https://HOST',
            "log.loki.labels: is empty, and a stream needs a label; add one",
            "log.loki.tenant: 'a\\nb' cannot be put into a header; write printable ASCII",
            "log.loki.token_file: user is set as well; write only one of them",
            "log.loki.password_file: is missing; user and password_file go together",
            "log.loki.token_file: /nowhere cannot be read; write a readable file",
            "metrics.address: udp cannot serve metrics; write tcp or unix",
            "metrics.textfile: /tmp/x.txt is not read by node_exporter; write a name that ends",
        ],
    ),
    (
        service(web(), http(), log=Log(loki=Loki(url="http://x:port"))),
        ['log.loki.url: "http://x:port": Port'],
    ),
    (
        service(
            web(),
            http(),
            log=Log(loki=Loki(url="http://me:secret@x", static_labels={"no-name": "x"})),
        ),
        [
            "log.loki.url: has a password",
            'log.loki.static_labels.no-name: "no-name" is not a label',
        ],
    ),
    (
        service(web(), http(), log=Log(stdout=False)),
        [f"log: has no sink for the output of {W}; set path, stdout or loki"],
    ),
    # Types, for those who have no checker; the rest is checked all the same.
    (
        service(web(command="/bin/true", boot_timeout="30s"), http(address="80")),
        [
            f'{W}.command: "/bin/true" is not an array',
            f'{W}.boot_timeout: "30s" is not a number; write seconds',
            f'{H}.address: "80" is not an address',
        ],
    ),
    (
        service(web(privileges=5), http()),
        [f"{W}.privileges: 5 is not a Privileges"],
    ),
    # What no system call can be given, wherever it stands.
    (
        service(
            web(
                command=("a\0",),
                env={"\0": "", "A": "\ud800"},
                boot_timeout=10**400,
                privileges=Privileges(user="\0", seccomp="/\0"),
            ),
            http(),
            log=Log(loki=Loki(url="http://x", ca_file="\0")),
        ),
        [
            f"{W}.command.0: has a null byte",
            f"{W}.env.\0: the key has a null byte",
            f"{W}.env.A: '\\ud800' cannot be encoded",
            f"{W}.privileges.user: has a null byte",
            f"{W}.privileges.seccomp: has a null byte",
            f"{W}.boot_timeout: 1000",
            "log.loki.ca_file: has a null byte",
        ],
    ),
    (service(components=[web()]), ["components: [Component("]),
]


@pytest.mark.parametrize(("checked", "expected"), CASES, ids=[lines[0][:50] for _, lines in CASES])
def test_every_problem_is_reported(checked: Service, expected: list[str]) -> None:
    found = reported(checked)
    assert len(found) == len(expected), found
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(start), found


def test_what_a_supervisor_without_privileges_cannot_do() -> None:
    privileges = Privileges(user="root", capabilities=("CHOWN",), namespaces=("net",), chroot="/")
    assert reported(service(web(privileges=privileges), http()), NOBODY) == [
        (
            f"{W}.privileges.user: the supervisor has no CAP_SETUID and CAP_SETGID to change to "
            "another; start it as root, or remove this"
        ),
        (
            f"{W}.privileges.capabilities.0: the supervisor does not have CHOWN and cannot give "
            "it; remove it"
        ),
        (
            f"{W}.privileges.namespaces: the supervisor has no CAP_SYS_ADMIN to create these; add "
            '"user", or start it as root'
        ),
        (
            f"{W}.privileges.chroot: the supervisor has no CAP_SYS_CHROOT; start it as root, or "
            "remove this"
        ),
    ]


def test_a_supervisor_without_privileges_may_run_its_own_user() -> None:
    privileges = Privileges(user=65534, group=65534, extra_groups=(), namespaces=("user", "net"))
    assert reported(service(web(privileges=privileges), http()), NOBODY) == []


def test_a_filter_and_a_root_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/server").touch(0o755)
    (tmp_path / "filter").write_bytes(b"1234567")
    component = web(
        command=("server",),
        env={"PATH": "/bin"},
        cwd="/bin",
        privileges=Privileges(chroot=str(tmp_path), seccomp=str(tmp_path / "filter")),
    )
    found = reported(service(component, http()))
    assert [text.split(": ")[0] for text in found] == [f"{W}.privileges.seccomp"]
    (tmp_path / "filter").write_bytes(bytes(8))
    assert reported(service(component, http())) == []
    below = dataclasses.replace(component, command=("bin/server",), cwd="/")
    assert reported(service(below, http())) == []


def test_an_error_names_all_of_it() -> None:
    found = validate(service(web(workers=-1, nice=50), http()), holder=ROOT)
    assert str(SpecError(tuple(found))).splitlines() == [str(problem) for problem in found]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("tcp://:80", "tcp://127.0.0.1:80", True),
        ("tcp://[::]:80", "tcp://0.0.0.0:80", True),
        ("tcp://0.0.0.0:80", "tcp://[::1]:80", False),
        ("tcp://:80", "udp://:80", False),
        ("tcp://:0", "tcp://:0", False),
        ("tcp://a:80", "tcp://b:80", False),
        ("unix:/tmp/./a", "unixgram:/tmp/a", True),
        ("unix:@a", "unixgram:@a", False),
        ("vsock:5", "vsock:any:5", True),
        ("systemd:a", "systemd:a", True),
    ],
)
def test_what_can_be_bound_only_once(one: str, other: str, clash: bool) -> None:
    assert parse_address(one).clashes(parse_address(other)) is clash
    assert parse_address(other).clashes(parse_address(one)) is clash


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("localhost:80", "has no scheme; write tcp://localhost:80"),
        ("tcp://localhost", "has no port"),
        ("tcp://::1:80", "needs brackets; write tcp://[::1]:80"),
        ("tcp://:70000", "port 70000 is out of range; write 0 to 65535"),
        ("tcp://[zz]:80", "zz is not an IPv6 address"),
        ("tcp://a b:80", "is not an address; write one of tcp://host:port"),
        ("vsock:5:99999999999", "cid or port is out of range; write 0 to 4294967295"),
        ("unix://tmp/x", "begins with //; write unix:/path"),
        ("unix:relative", "the path is relative to where the supervisor starts; write /path"),
        ("unix:/" + "a" * 107, "the path is too long; write at most 107 bytes"),
        ("unix:/a\0", "has a null byte; write unix:@name"),
        ("http://x", "is not an address; write one of tcp://host:port"),
    ],
)
def test_an_address_that_is_none(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(text)
    assert why in str(caught.value)
