"""The description of a service: frozen values; nothing is opened or checked against the system."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pyforkfd._types import Namespace

from . import _bounds as bounds
from ._bounds import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Bounds
from ._limits import Limits as Limits
from ._limits import MemoryGuard as MemoryGuard
from ._limits import Pressure as Pressure
from ._problems import Problem as Problem
from ._problems import SpecError as SpecError
from ._units import Bytes, Limit, Mode, Seconds, Signal

Stream: TypeAlias = Literal["capture", "inherit", "null"]
"""The destination of a worker's output: the log, line by line; the supervisor's own; or none."""
LokiLabel: TypeAlias = Literal["component", "worker", "generation", "stream", "level"]
"""A field of a record that Loki may index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that the supervisor binds once, holds, and gives to workers.

    Attributes:
        name (string; required): components refer to it, LISTEN_FDNAMES has it.
        address (string; required): as for :func:`pyforkfd.bind`: ``tcp://host:port``,
            ``unix:/path``, ``unix:@name``, ``vsock:port``; and ``udp://host:port``,
            ``unixgram:/path`` (datagrams), ``unixpacket:/path`` (SOCK_SEQPACKET), ``systemd:NAME``
            (the socket that the service manager passed under this name).
        backlog (integer, from 1 to 2147483647; default 4096): connections that may wait; the kernel
            cuts it to net.core.somaxconn.
        shards (boolean; default False): SO_REUSEPORT, a socket of its own for each position of a
            worker; the kernel spreads connections over them.  TCP and UDP only.
        mode (permissions, from 0 to 0o777; default None): of a path; None: 0o777 less the umask.
        nodelay (boolean; default True): TCP_NODELAY, which accepted sockets inherit.
        ipv6_only (boolean; default False): an IPv6 listener does not take IPv4.
    """

    name: str
    address: str
    backlog: Annotated[int, bounds.BACKLOG] = 4096
    shards: bool = False
    mode: Mode | None = None
    nodelay: bool = True
    ipv6_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The restart of a worker that ended by itself.

    Attributes:
        policy ("always", "on-failure" or "never"; default "always"): ends that are followed by a
            restart; "on-failure": all but exit code 0.
        backoff (seconds, 0 or more; default 0.1): pause before a restart that follows a crash; each
            further crash doubles it.
        backoff_cap (seconds, 0 or more; default 30): longest pause; not below ``backoff``.
        max_restarts (integer, from 0 to 1000000; default 10): restarts of one worker's position
            within ``within``; one more and the position is given up, the service degraded.
        within (seconds, above 0; default 60): the time in which ``max_restarts`` are counted.
        retry_cap (seconds, 1 or more; default 300): longest pause before a position that was given
            up is tried again; the pause is at least a second and doubles with each crash.
    """

    policy: Literal["always", "on-failure", "never"] = "always"
    backoff: Annotated[Seconds, AT_LEAST_0] = 0.1
    backoff_cap: Annotated[Seconds, AT_LEAST_0] = 30.0
    max_restarts: Annotated[int, bounds.RESTARTS] = 10
    within: Annotated[Seconds, ABOVE_0] = 60.0
    retry_cap: Annotated[Seconds, AT_LEAST_1] = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recycle:
    """Bounds at which a healthy worker is replaced; its replacement is ready before it leaves.

    Attributes:
        requests (integer, from 1 to 1000000000; default None): requests, counted on its page.
        age (seconds, above 0; default None): time since the worker became ready.
        memory (bytes, above 0; default None): memory that the worker uses; below
            ``limits.memory_max``.
        jitter (number, from 0 to below 1; default 0.1): share by which a worker's own ``requests``
            and ``age`` are moved up or down, so that not all are replaced at once.
    """

    requests: Annotated[int, bounds.REQUESTS] | None = None
    age: Annotated[Seconds, ABOVE_0] | None = None
    memory: Annotated[Bytes, ABOVE_0] | None = None
    jitter: Annotated[float, Bounds(0, 1, open="most")] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The rule by which a worker that is ready counts as blocked.

    Attributes:
        interval (seconds, above 0; default 0.2): time between two checks of the page.
        stale_after (seconds, above 0; default 5): time without a beat after which the worker's
            stack is dumped and it is evicted; above ``interval``.
        required (boolean; default False): a worker that has never beaten is stale too.
    """

    interval: Annotated[Seconds, ABOVE_0] = 0.2
    stale_after: Annotated[Seconds, ABOVE_0] = 5.0
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """A worker's user, capabilities and confinement; by default the least that a server needs.

    Attributes:
        user (string or integer; default None): name or uid; brings groups, HOME, USER, LOGNAME
            and SHELL of its entry.  None: the supervisor's.
        group (string or integer; default None): name or gid.  None: that of the user, else the
            supervisor's.
        extra_groups (tuple of strings or integers; default None): names or gids; None: those of the
            user, else the supervisor's.
        capabilities (tuple of strings; default None): all capabilities, by name
            (``"NET_BIND_SERVICE"``).  None: NET_BIND_SERVICE where the component has listeners,
            else none.
        no_new_privs (boolean; default True): no program that the worker executes gains privileges,
            PR_SET_NO_NEW_PRIVS.
        namespaces (tuple of "cgroup", "ipc", "mnt", "net", "pid", "time", "user" or "uts"; default
            ()): new namespaces for each worker.
        seccomp (string; default None): path of a file with the filter, an array of struct
            sock_filter.
        chroot (string; default None): path of the worker's root directory.
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
        name (string; required): logs, metrics and requests refer to it.
        command (tuple of strings; default None): the program and its arguments; either this or
            ``function``.
        function (string; default None): ``"package.module:function"``, called in a worker that a
            zygote starts.
        args (tuple; default ()): positional arguments of the function.
        kwargs (mapping; default empty): keyword arguments of the function.
        zygote (string; default None): name of the zygote that starts the workers; None: one of the
            component's own, which has imported the function's module.
        workers (integer, from 0 to 4096; default 1): workers that are to be ready, of all
            components together at most 4096; 0: none until the component is scaled.
        listen (tuple of strings; default ()): names of the listeners that its workers get.
        give ("listen_fds", "numbers" or "channel"; default "listen_fds"): way in which they get
            them: "listen_fds" (3, 4, ... with LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES), "numbers"
            (see there), "channel" (sent over the FdChannel).
        numbers (mapping of integers; default None): listener -> the worker's descriptor, 3 to 1023,
            for ``give="numbers"``.
        env (mapping of strings; default None): variables, added to the supervisor's own.
        clear_env (boolean; default False): start from an empty environment instead.
        cwd (string; default None): path of the working directory, from which a function is imported
            too, after ``app_dir``; None: the supervisor's.
        umask (permissions, from 0 to 0o777; default None): file mode creation mask; None: the
            supervisor's.
        nice (integer, from -20 to 19; default None): the nice value itself; None: the supervisor's.
        cpu_affinity (tuple of integers; default None): numbers of the processors that its workers
            may run on, from 0; None: the supervisor's.
        rlimits (mapping of limit or tuple of 2; default None): ``"NOFILE"`` -> limit, or (soft,
            hard); -1: no limit.
        privileges (Privileges; default Privileges()): user, capabilities and confinement.
        limits (Limits; default empty): limits of each worker's cgroup.
        pressure (Pressure; default empty): shares of time that a worker may wait for a resource;
            needs its cgroup.
        cgroup ("prefer", "require" or "off"; default "prefer"): a cgroup for each worker: "prefer"
            (a warning where that is impossible), "require", "off".
        readiness ("notify", "accept" or "started"; default "notify"): sign that a worker is ready:
            "notify" (it sends READY=1 or calls our helper), "accept" (it has accepted a connection
            or waits for one), "started" (its program has run for a second).
        boot_timeout (seconds, above 0; default 30): time until a worker must be ready.
        drain_timeout (seconds, 0 or more; default 30): time in which a worker may finish what it
            has begun; then ``stop_signal``.
        stop_signal (signal's number; default SIGTERM): signal that requests a worker to end.
        stop_timeout (seconds, 0 or more; default 5): time between ``stop_signal`` and SIGKILL of
            the worker's whole tree.
        dump_signal (signal's number; default SIGABRT): signal to a stale worker, so that it dumps
            its stacks; None: none is sent.
        reload_signal (signal's number; default None): signal on a reload that changed nothing of
            this component, for workers that read their configuration anew; None: such a reload
            restarts them.
        restart (Restart; default Restart()): restart of a worker that ended by itself.
        recycle (Recycle; default Recycle()): bounds at which a healthy worker is replaced.
        heartbeat (Heartbeat; default Heartbeat()): rule by which a worker counts as blocked.
        memory_guard (MemoryGuard; default None): bounds of a worker's memory; None: it is not
            watched.
        on_crash (tuple of strings or tuple of strings; default ()): run after a crash, each in a
            process of its own: ``"package.module:function"``, or a command.
        stdout ("capture", "inherit" or "null"; default "capture"): where standard output goes.
        stderr ("capture", "inherit" or "null"; default "capture"): where standard error goes.
    """

    name: str
    command: tuple[str, ...] | None = None
    function: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    zygote: str | None = None
    workers: Annotated[int, bounds.WORKERS] = 1
    listen: tuple[str, ...] = ()
    give: Literal["listen_fds", "numbers", "channel"] = "listen_fds"
    numbers: Mapping[str, int] | None = None
    env: Mapping[str, str] | None = None
    clear_env: bool = False
    cwd: str | None = None
    umask: Mode | None = None
    nice: Annotated[int, Bounds(-20, 19)] | None = None
    cpu_affinity: tuple[int, ...] | None = None
    rlimits: Mapping[str, Limit | tuple[Limit, Limit]] | None = None
    privileges: Privileges = Privileges()
    limits: Limits = field(default_factory=Limits)
    pressure: Pressure = field(default_factory=Pressure)
    cgroup: Literal["prefer", "require", "off"] = "prefer"
    readiness: Literal["notify", "accept", "started"] = "notify"
    boot_timeout: Annotated[Seconds, ABOVE_0] = 30.0
    drain_timeout: Annotated[Seconds, AT_LEAST_0] = 30.0
    stop_signal: Signal = signal.SIGTERM
    stop_timeout: Annotated[Seconds, AT_LEAST_0] = 5.0
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
        """Whether its workers read a channel, and can thus be ordered to pause."""
        return self.readiness == "notify"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """A process that has imported what workers need, and clones itself for each.

    Attributes:
        name (string; required): components refer to it.
        preload (tuple of strings; default ()): modules to import, in this order.
        setup (string; default None): ``"package.module:function"``, called after the imports.
        env (mapping of strings; default None): variables, added to the supervisor's own.
    """

    name: str
    preload: tuple[str, ...] = ()
    setup: str | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The Unix socket on which the supervisor takes requests.

    Attributes:
        path (string; default None): of the socket, or ``@name`` in the abstract namespace; None:
            there is none, but ``pyforkfd serve`` chooses one.
        mode (permissions, from 0 to 0o777; default 0o600): of the socket.
        allow_users (tuple of strings or integers; default ()): names or uids that may send
            requests, besides root and the supervisor's; ``mode`` must let them in.
    """

    path: str | None = None
    mode: Mode = 0o600
    allow_users: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loki:
    """Grafana Loki's push endpoint, as a sink of the log.

    Attributes:
        url (string; required): http or https; without a path, /loki/api/v1/push is meant.
        labels (tuple of "component", "worker", "generation", "stream" or "level"; default
            component, stream, level): fields of a record that are labels of its stream.  Few are
            better: each combination of values is a stream, and a worker's number is never used
            again.  The line has all fields in any case.
        static_labels (mapping of strings; default empty): further labels with fixed values.
        tenant (string; default None): X-Scope-OrgID.
        user (string; default None): of basic authentication, with ``password_file``.
        password_file (string; default None): path; read before each request, so it may change.
        token_file (string; default None): path of a bearer token; not beside ``user``.
        ca_file (string; default None): path of certificates to trust instead of the system's.
        batch_bytes (bytes, above 0; default 1M): size of the lines at which a batch is sent.
        batch_seconds (seconds, above 0; default 1): age of its first line at which a batch is sent.
        timeout (seconds, above 0; default 10): time for connecting, and for each wait for the
            endpoint.
        retries (integer, from 0 to 1000; default 10): tries after a batch's first; then it is lost.
        backoff (seconds, 0 or more; default 0.5): pause before the second try; each further one
            doubles it.
        backoff_cap (seconds, 0 or more; default 30): longest pause between two tries, unless
            Retry-After demands a longer one.
        buffer (bytes, above 0; default 8M): lines in memory while the endpoint does not answer;
            beyond them the oldest are dropped and counted.
    """

    url: str
    labels: tuple[LokiLabel, ...] = ("component", "stream", "level")
    static_labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    user: str | None = None
    password_file: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    batch_bytes: Annotated[Bytes, ABOVE_0] = 1 << 20
    batch_seconds: Annotated[Seconds, ABOVE_0] = 1.0
    timeout: Annotated[Seconds, ABOVE_0] = 10.0
    retries: Annotated[int, bounds.RETRIES] = 10
    backoff: Annotated[Seconds, AT_LEAST_0] = 0.5
    backoff_cap: Annotated[Seconds, AT_LEAST_0] = 30.0
    buffer: Annotated[Bytes, ABOVE_0] = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The sinks of the log.

    Attributes:
        path (string; default None): file that all processes append to; None: there is none.
        mode (permissions, from 0 to 0o777; default 0o640): of the file when it is created.
        max_bytes (bytes, above 0; default None): size at which the supervisor rotates the file;
            None: never.
        keep (integer, from 1 to 1000; default 5): rotated files that stay.
        dsync (boolean; default False): O_DSYNC, a record is on the disk when its write returns.
        stdout (boolean; default True): records also go to the supervisor's standard output.
        loki (Loki; default None): records also go to Loki.
    """

    path: str | None = None
    mode: Mode = 0o640
    max_bytes: Annotated[Bytes, ABOVE_0] | None = None
    keep: Annotated[int, bounds.ROTATED_FILES] = 5
    dsync: bool = False
    stdout: bool = True
    loki: Loki | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The metrics that Prometheus reads: a page, a file, or both.

    Attributes:
        address (string; default None): ``tcp://host:port`` or ``unix:/path`` of the endpoint; None:
            there is none.
        textfile (string; default None): path of a file for node_exporter's textfile collector,
            replaced whole; ends in ``.prom``.
        interval (seconds, above 0; default 15): time between two of these files.
    """

    address: str | None = None
    textfile: str | None = None
    interval: Annotated[Seconds, ABOVE_0] = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """All that one supervisor runs.

    Attributes:
        name (string; required): of the service.
        components (mapping of Component; required): name -> component.
        listeners (mapping of Listener; default empty): name -> listener.
        zygotes (mapping of ZygoteSpec; default empty): name -> zygote.
        app_dir (string; default None): path of a directory from which functions, modules to preload
            and Python hooks are imported before any other; in a file it is relative to the file's
            directory, which is the default; None: no further one.
        control (Control; default Control()): the control socket.
        log (Log; default Log()): the sinks of the log.
        metrics (Metrics; default Metrics()): where Prometheus finds metrics.
        rollback (seconds, 0 or more; default 0): time that the old generation stays paused after a
            reload, for a rollback at once; 0: it leaves.
        max_generations (integer, from 2 to 100; default 3): generations of one component at a time,
            the one that comes and those that leave.
        keeper (boolean; default False): a small process outlives the supervisor and starts it
            again.
    """

    name: str
    components: Mapping[str, Component]
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    zygotes: Mapping[str, ZygoteSpec] = field(default_factory=dict)
    app_dir: str | None = None
    control: Control = Control()
    log: Log = Log()
    metrics: Metrics = Metrics()
    rollback: Annotated[Seconds, AT_LEAST_0] = 0.0
    max_generations: Annotated[int, bounds.GENERATIONS] = 3
    keeper: bool = False
