"""A service, described completely: frozen values, nothing is looked up or opened here."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pyforkfd._types import Namespace

from ._limits import Limits as Limits
from ._limits import MemoryGuard as MemoryGuard
from ._limits import Pressure as Pressure
from ._problems import Problem as Problem
from ._problems import SpecError as SpecError

Seconds: TypeAlias = Annotated[float, "seconds"]
"""A duration; in a file also ``"500ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"1d"``."""
Bytes: TypeAlias = Annotated[int, "bytes"]
"""A size; in a file also ``"64K"``, ``"512M"``, ``"2G"``, in powers of 1024."""
Limit: TypeAlias = Annotated[int, "limit"]
"""A resource limit, -1 is none; in a file also a size, or ``"unlimited"``."""
Signal: TypeAlias = Annotated[int, "signal"]
"""A signal's number; in a file also its name, ``"SIGTERM"``."""

Stream: TypeAlias = Literal["capture", "inherit", "null"]
"""Where a worker's output goes: to the log by line, where the supervisor's goes, nowhere."""
LokiLabel: TypeAlias = Literal["component", "worker", "generation", "stream", "level"]
"""A field of a record that Loki may index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that the supervisor binds once, keeps, and gives to workers.

    Attributes:
        name: what components call it; its name in LISTEN_FDNAMES.
        address: as for :func:`pyforkfd.bind`: ``tcp://host:port``, ``unix:/path``,
            ``unix:@name``, ``vsock:port``; and ``udp://host:port``, ``unixgram:/path``
            (datagrams), ``unixpacket:/path`` (SOCK_SEQPACKET), ``systemd:NAME`` (what the
            service manager gave the supervisor under this name).
        backlog: connections that may wait; the kernel cuts it to net.core.somaxconn.
        shards: SO_REUSEPORT, a socket of its own for each position of a worker; the kernel
            spreads connections over them.  TCP and UDP only.
        mode: permissions of a path; None is 0o777 less the umask.
        nodelay: TCP_NODELAY, which accepted sockets inherit.
        ipv6_only: an IPv6 listener does not take IPv4.
    """

    name: str
    address: str
    backlog: int = 4096
    shards: bool = False
    mode: int | None = None
    nodelay: bool = True
    ipv6_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What happens when a worker ends by itself.

    Attributes:
        policy: "always"; "on-failure" (not after exit code 0); "never".
        backoff: seconds before a restart that follows a crash; doubled by each further one.
        backoff_cap: seconds, at most.
        max_restarts: so many restarts of one component within ``within`` are accepted; one
            more and the component is given up (FATAL), the service degraded.
        within: seconds.
    """

    policy: Literal["always", "on-failure", "never"] = "always"
    backoff: Seconds = 0.1
    backoff_cap: Seconds = 30.0
    max_restarts: int = 10
    within: Seconds = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recycle:
    """When a healthy worker is replaced; its replacement is ready before it leaves.

    Attributes:
        requests: after so many, as it counts them on its page.
        age: seconds after it became ready.
        memory: bytes it uses.
        jitter: share by which a worker's own requests and age are moved up or down, so that
            not all are replaced at once.
    """

    requests: int | None = None
    age: Seconds | None = None
    memory: Bytes | None = None
    jitter: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """When a worker that is ready counts as blocked.

    Attributes:
        interval: seconds between two looks at the page.
        stale_after: seconds without a beat; then its stack is dumped and it is evicted.
        required: a worker that has never beaten is stale too.
    """

    interval: Seconds = 0.2
    stale_after: Seconds = 5.0
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """What a worker may do.  The default is the least that a network service needs.

    Attributes:
        user: name or uid; brings the group and extra groups of its entry.
        group: name or gid.
        extra_groups: names or gids; None: those of the user, else the supervisor's.
        capabilities: all that it has, by name (``"NET_BIND_SERVICE"``).  None:
            NET_BIND_SERVICE where the component has listeners, else none.
        no_new_privs: nothing that it executes gains privileges, PR_SET_NO_NEW_PRIVS.
        namespaces: new ones for each worker: cgroup, ipc, mnt, net, pid, time, user, uts.
        seccomp: path of a file with the filter, an array of struct sock_filter.
        chroot: its root directory.
    """

    user: str | int | None = None
    group: str | int | None = None
    extra_groups: tuple[str | int, ...] | None = None
    capabilities: tuple[str, ...] | None = None
    no_new_privs: bool = True
    namespaces: tuple[Namespace, ...] = ()
    seccomp: str | None = None
    chroot: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Workers of one kind.

    Attributes:
        name: what it is called in logs, metrics and orders.
        command: the program and its arguments; either this or ``function``.
        function: ``"package.module:function"``, called in a worker that a zygote made.
        args: positional arguments of the function.
        kwargs: keyword arguments of the function.
        zygote: the name of the zygote that makes the workers; None is one of the
            component's own, which has imported the function's module.
        workers: how many are to be ready; 0: none until it is scaled.
        listen: names of the listeners its workers get.
        give: how they get them: "listen_fds" (3, 4, ... with LISTEN_FDS, LISTEN_PID,
            LISTEN_FDNAMES), "numbers" (see there), "channel" (sent over the FdChannel).
        numbers: listener -> the worker's descriptor, for ``give="numbers"``.
        env: variables, added to the supervisor's own.
        clear_env: start from an empty environment instead.
        cwd: directory; None is the supervisor's.
        umask: file mode creation mask; None is the supervisor's.
        nice: the nice value itself.
        cpu_affinity: numbers of the processors its workers may run on.
        rlimits: ``"NOFILE"`` -> limit, or (soft, hard); -1 is none.
        privileges: user, capabilities and confinement.
        limits: of each worker's cgroup.
        pressure: when one waits for too long for what it lacks; wants its cgroup.
        cgroup: a cgroup for each worker: "prefer" (a warning where that is impossible),
            "require", "off".
        readiness: when a worker is ready: "notify" (it says READY=1 or calls our helper),
            "accept" (it has accepted a connection or waits for one), "started".
        boot_timeout: seconds until it must be ready.
        drain_timeout: seconds it may take to finish what it has begun; then stop_signal.
        stop_signal: asks it to end.
        stop_timeout: seconds between that and SIGKILL of its whole tree.
        dump_signal: sent to a stale worker, so that it dumps its stacks; None: none is.
        reload_signal: sent on a reload that changed nothing of this component, for workers
            that read their configuration anew; None: such a reload restarts them.
        restart: what happens when one ends by itself.
        recycle: when a healthy one is replaced.
        heartbeat: when one counts as blocked.
        memory_guard: when its memory is too much; None: not watched.
        on_crash: what runs after a crash, in a process of its own: each
            ``"package.module:function"``, or a command.
        stdout: where its standard output goes.
        stderr: where its standard error goes.
    """

    name: str
    command: tuple[str, ...] | None = None
    function: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    zygote: str | None = None
    workers: int = 1
    listen: tuple[str, ...] = ()
    give: Literal["listen_fds", "numbers", "channel"] = "listen_fds"
    numbers: Mapping[str, int] | None = None
    env: Mapping[str, str] | None = None
    clear_env: bool = False
    cwd: str | None = None
    umask: int | None = None
    nice: int | None = None
    cpu_affinity: tuple[int, ...] | None = None
    rlimits: Mapping[str, Limit | tuple[Limit, Limit]] | None = None
    privileges: Privileges = Privileges()
    limits: Limits = field(default_factory=Limits)
    pressure: Pressure = field(default_factory=Pressure)
    cgroup: Literal["prefer", "require", "off"] = "prefer"
    readiness: Literal["notify", "accept", "started"] = "notify"
    boot_timeout: Seconds = 30.0
    drain_timeout: Seconds = 30.0
    stop_signal: Signal = signal.SIGTERM
    stop_timeout: Seconds = 5.0
    dump_signal: Signal | None = signal.SIGABRT
    reload_signal: Signal | None = None
    restart: Restart = Restart()
    recycle: Recycle = Recycle()
    heartbeat: Heartbeat = Heartbeat()
    memory_guard: MemoryGuard | None = None
    on_crash: tuple[str | tuple[str, ...], ...] = ()
    stdout: Stream = "capture"
    stderr: Stream = "capture"

    @property
    def can_pause(self) -> bool:
        """Its workers take orders: those that do not speak to us cannot be told to pause."""
        return self.readiness == "notify"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """A process that has imported what workers need, and clones itself for each.

    Attributes:
        name: what components call it.
        preload: modules to import, in this order.
        setup: ``"package.module:function"``, called after the imports.
        env: variables, added to the supervisor's own.
    """

    name: str
    preload: tuple[str, ...] = ()
    setup: str | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The Unix socket by which the supervisor takes orders.

    Attributes:
        path: of the socket; None: there is none, but ``pyforkfd serve`` chooses one.
        mode: its permissions.
        allow_users: names or uids that may give orders, besides root and the supervisor's;
            ``mode`` must let them in.
    """

    path: str | None = None
    mode: int = 0o600
    allow_users: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loki:
    """Grafana Loki's push endpoint, as a sink of the log.

    Attributes:
        url: http or https; without a path, /loki/api/v1/push is meant.
        labels: fields of a record that are labels of its stream; Loki keeps one stream for
            each combination of values, so that few are better, and a worker's number is never
            used again; the line has all of them in any case.
        static_labels: further labels with fixed values.
        tenant: X-Scope-OrgID.
        user: of basic authentication, with password_file.
        password_file: path; read before each request, so that the secret may be changed.
        token_file: path of a bearer token; not beside user.
        ca_file: path of certificates to trust instead of the system's.
        batch_bytes: bytes of lines after which a batch is sent.
        batch_seconds: age of its first line after which it is sent.
        timeout: seconds for connecting, and for each wait for the other end.
        retries: tries after the first before a batch is dropped.
        backoff: seconds before the second try; then twice that, and so on.
        backoff_cap: seconds; the most between two tries, unless Retry-After asks for more.
        buffer: bytes kept in memory while the endpoint does not answer; beyond them the
            oldest are dropped and counted.
    """

    url: str
    labels: tuple[LokiLabel, ...] = ("component", "stream", "level")
    static_labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    user: str | None = None
    password_file: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    batch_bytes: Bytes = 1 << 20
    batch_seconds: Seconds = 1.0
    timeout: Seconds = 10.0
    retries: int = 10
    backoff: Seconds = 0.5
    backoff_cap: Seconds = 30.0
    buffer: Bytes = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Where records go.

    Attributes:
        path: file that all processes append to; None: there is none.
        mode: permissions of the file when it is made.
        max_bytes: the supervisor rotates the file at this size; None: never.
        keep: how many rotated files stay, 1 at least.
        dsync: O_DSYNC, a record is on the disk when its write returns.
        stdout: records also go to the supervisor's standard output.
        loki: records also go to Loki.
    """

    path: str | None = None
    mode: int = 0o640
    max_bytes: Bytes | None = None
    keep: int = 5
    dsync: bool = False
    stdout: bool = True
    loki: Loki | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where Prometheus finds metrics.

    Attributes:
        address: ``tcp://host:port`` or ``unix:/path`` of the endpoint; None: there is none.
        textfile: path of a file for node_exporter's textfile collector, replaced whole.
        interval: seconds between two of these files.
    """

    address: str | None = None
    textfile: str | None = None
    interval: Seconds = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """All that one supervisor runs.

    Attributes:
        name: of the service.
        components: name -> component.
        listeners: name -> listener.
        zygotes: name -> zygote.
        control: the control socket.
        log: where records go.
        metrics: where Prometheus finds metrics.
        rollback: seconds that the old generation stays paused after a reload, to be gone
            back to at once; 0: it leaves.
        max_generations: of one component at a time, those that are leaving included.
        keeper: a small process outlives the supervisor and starts it again.
    """

    name: str
    components: Mapping[str, Component]
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    zygotes: Mapping[str, ZygoteSpec] = field(default_factory=dict)
    control: Control = Control()
    log: Log = Log()
    metrics: Metrics = Metrics()
    rollback: Seconds = 0.0
    max_generations: int = 3
    keeper: bool = False
