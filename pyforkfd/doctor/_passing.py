"""Experiments: a listener passed on by fork, exec and SCM_RIGHTS; and SCM_RIGHTS itself."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyforkfd._fd import Fd, same_open_file, set_cloexec
from pyforkfd._sections import inheriting

from ._children import errno_name, holding, in_exec, in_fork, receive
from ._experiments import Impossible, Observation, Section

LISTENERS = Section("Listeners that are passed on")
PASSING = Section("Passing descriptors by SCM_RIGHTS")

_DEAD = "a listener is dead in the child"
_UNLISTENED = "listen(2) was never called on it"
_ACCEPT = "report(lambda: accept(socket.socket(fileno=int(sys.argv[1]))))"
_RECEIVE = "report(lambda: accept(socket.socket(fileno=receive(int(sys.argv[1])))))"


@contextmanager
def _listener(dead: bool = False) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open a listener and a client whose connection waits in its queue; dead: only bind it."""
    with _bound() as listener, socket.socket(listener.family) as client:
        client.settimeout(10)
        if not dead:
            listener.listen()
            client.connect(listener.getsockname())
        yield listener, client


def _bound(*, tcp: bool = False) -> socket.socket:
    """Bind a TCP socket on the loopback interface; where that is down, one to an abstract name."""
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", 0))
        return bound
    except OSError as error:
        bound.close()
        if tcp:
            raise Impossible(f"no loopback interface: {error.strerror}") from None
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("")
    return bound


def _accept(listener: socket.socket) -> str:
    """Serve one connection, like the function of this name in _children."""
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"hello")
    return "accepted"


def _adopt(fd: int) -> str:
    with socket.socket(fileno=fd) as listener:
        return _accept(listener)


def _served(client: socket.socket, result: str) -> Observation:
    if result != "accepted":
        return Observation(False, f"accept: {result}")
    return Observation(client.recv(5) == b"hello", "accepted, and the client was answered")


@contextmanager
def _channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(10)
        there.settimeout(10)
        yield here, there


def _send(channel: socket.socket, sent: socket.socket) -> None:
    socket.send_fds(channel, [b"x"], [sent.fileno()])


@LISTENERS.experiment(
    statement="a listener inherited by fork accepts",
    belief=_DEAD,
    control=_UNLISTENED,
)
def listener_by_fork(control: bool) -> Observation:
    with _listener(control) as (listener, client):
        return _served(client, in_fork(lambda: _accept(listener)))


@LISTENERS.experiment(
    statement="a listener inherited by exec accepts: clearing FD_CLOEXEC is enough",
    belief="it must be duplicated, or listened on once more",
    control="the mark is left set",
)
def listener_by_exec(control: bool) -> Observation:
    with _listener() as (listener, client):
        set_cloexec(listener.fileno(), control)
        return _served(client, in_exec(_ACCEPT, listener.fileno()))


@LISTENERS.experiment(
    statement="a duplicated or inherited listener listens (SO_ACCEPTCONN): no second listen(2)",
    belief="listen(2) must be called in the child",
    control=_UNLISTENED,
)
def no_second_listen(control: bool) -> Observation:
    code = """
with socket.socket(fileno=int(sys.argv[1])) as listener:
    print(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), end="")
"""
    with _listener(control) as (listener, _), listener.dup() as copy, inheriting(copy):
        result = in_exec(code, copy.fileno())
    return Observation(result == "1", f"SO_ACCEPTCONN of a duplicate, after exec: {result}")


@LISTENERS.experiment(
    statement="a listener lives on when the parent closes its own descriptor",
    belief="it dies with the process that made it",
    control="the parent shuts it down first",
)
def listener_outlives_the_parents(control: bool) -> Observation:
    with _listener() as (listener, client), _channel() as (here, there):

        def child() -> str:
            there.recv(1)
            return _accept(listener)

        def meanwhile() -> None:
            if control:
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            here.send(b"x")

        result = in_fork(child, meanwhile=meanwhile)
        return _served(client, result)


@LISTENERS.experiment(
    statement="the child accepts connections that came before its start: there is one queue",
    belief="each process has a queue of its own",
    control="a second listener by SO_REUSEPORT, which has a queue of its own",
)
def one_queue(control: bool) -> Observation:
    with _bound(tcp=True) as like, socket.socket() as first, socket.socket() as client:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind((like.getsockname()[0], 0))
        first.listen()
        client.settimeout(10)
        client.connect(first.getsockname())
        with socket.socket() if control else first.dup() as other:
            if control:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                other.bind(first.getsockname())
                other.listen()
            other.setblocking(False)
            return _served(client, in_fork(lambda: _accept(other)))


@LISTENERS.experiment(
    statement="the address stays taken while any process holds the listener",
    belief="it is free when the server has closed its descriptor",
    control="no other process holds it",
)
def address_stays_taken(control: bool) -> Observation:
    with ExitStack() as stack:
        listener = stack.enter_context(_bound(tcp=True))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen()
        address = listener.getsockname()
        if not control:
            stack.enter_context(holding())
        listener.close()
        with socket.socket() as successor:
            successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                successor.bind(address)
                result = "bound again"
            except OSError as error:
                result = errno_name(error)
    return Observation(result == "EADDRINUSE", f"closed here, held by a child: {result}")


@LISTENERS.experiment(
    statement="accepted connections inherit TCP_NODELAY from the listener",
    belief="it must be set on each connection",
    control="it is not set on the listener",
)
def accepted_inherit_nodelay(control: bool) -> Observation:
    with _bound(tcp=True) as listener, socket.socket() as client:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, not control)
        listener.listen()
        client.connect(listener.getsockname())
        with listener.accept()[0] as accepted:
            on = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return Observation(bool(on), f"TCP_NODELAY of the accepted socket: {on}")


# By SCM_RIGHTS


@LISTENERS.experiment(
    statement="a listener sent by SCM_RIGHTS to a forked child accepts",
    belief=_DEAD,
    control=_UNLISTENED,
)
def listener_to_a_forked_child(control: bool) -> Observation:
    with _listener(control) as (listener, client), _channel() as (here, there):
        _send(here, listener)
        return _served(client, in_fork(lambda: _adopt(receive(there))))


@LISTENERS.experiment(
    statement="a listener sent by SCM_RIGHTS to an executed program accepts",
    belief="only a child that inherited it can use it",
    control=_UNLISTENED,
)
def listener_to_a_program(control: bool) -> Observation:
    with _listener(control) as (listener, client), _channel() as (here, there), inheriting(there):
        _send(here, listener)
        return _served(client, in_exec(_RECEIVE, there.fileno()))


@LISTENERS.experiment(
    statement="a listener received before an exec accepts after it, if not marked on arrival",
    belief="exec loses received descriptors",
    control="received with MSG_CMSG_CLOEXEC",
)
def listener_received_before_exec(control: bool) -> Observation:
    flags = socket.MSG_CMSG_CLOEXEC if control else 0
    with _listener() as (listener, client), _channel() as (here, there):
        _send(here, listener)
        return _served(client, in_fork(lambda: in_exec(_ACCEPT, receive(there, flags))))


@LISTENERS.experiment(
    statement="a listener that a forked child made and sent to its parent outlives the child",
    belief="it belongs to the child",
    control=_UNLISTENED,
)
def listener_from_a_forked_child(control: bool) -> Observation:
    with _channel() as (here, there):

        def child() -> None:
            with _bound() as made:
                if not control:
                    made.listen()
                _send(there, made)

        in_fork(child)
        return _accepts_here(receive(here))


@LISTENERS.experiment(
    statement="a listener that an executed program made and sent to its parent accepts there",
    belief="after exec, descriptors cannot be passed back",
    control=_UNLISTENED,
)
def listener_from_a_program(control: bool) -> Observation:
    code = """
made = socket.socket(int(sys.argv[2]))
made.bind(("127.0.0.1", 0) if made.family == socket.AF_INET else "")
if sys.argv[3] == "listen":
    made.listen()
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [made.fileno()])
"""
    with _bound() as like, _channel() as (here, there), inheriting(there):
        in_exec(code, there.fileno(), int(like.family), "no" if control else "listen")
        return _accepts_here(receive(here))


def _accepts_here(received: int) -> Observation:
    with socket.socket(fileno=received) as listener, socket.socket(listener.family) as client:
        listener.setblocking(False)
        client.settimeout(10)
        try:
            client.connect(listener.getsockname())
        except ConnectionRefusedError:
            return Observation(False, "connect: ECONNREFUSED")
        return _served(client, _accept(listener))


@PASSING.experiment(
    statement="SCM_RIGHTS needs no SO_PASSCRED",
    belief="SO_PASSCRED must be set for ancillary data to arrive",
    control="SCM_CREDENTIALS, which needs it",
)
def rights_need_no_passcred(control: bool) -> Observation:
    ours = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
    with _channel() as (here, there):
        if control:
            here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ours)])
        else:
            _send(here, here)
        size = socket.CMSG_SPACE(len(ours))
        _, ancillary, _, _ = there.recvmsg(1, size, socket.MSG_CMSG_CLOEXEC)
        for _, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                os.close(struct.unpack("i", data[:4])[0])
    return Observation(
        bool(ancillary), f"SO_PASSCRED is off; {len(ancillary)} control messages came"
    )


@PASSING.experiment(
    statement="the receiver gets the same open file under a number of its own",
    belief="a copy of the file, or the same number",
    control="a second open(2) of the file is sent",
)
def rights_pass_the_open_file(control: bool) -> Observation:
    number = os.open(os.devnull, os.O_RDONLY)
    with Fd(number), _channel() as (here, there):
        sent = os.open(os.devnull, os.O_RDONLY) if control else os.dup(number)
        with Fd(sent):
            socket.send_fds(here, [b"x"], [sent])
        with Fd(receive(there)) as received:
            same = same_open_file(received, number)
    return Observation(same, "the same open file" if same else "another open file")


@PASSING.experiment(
    statement="a descriptor in flight is open: the sender may close it, or exit, at once",
    belief="the sender must wait until it has arrived",
    control="it is not sent",
)
def rights_in_flight_are_open(control: bool) -> Observation:
    reader, writer = os.pipe()
    with Fd(writer), _channel() as (here, _there):
        with Fd(reader):
            if not control:
                socket.send_fds(here, [b"x"], [reader])
        try:
            os.write(writer, b"x")
            result = "the pipe has a reader"
        except BrokenPipeError:
            result = "the pipe has no reader"
    return Observation(result == "the pipe has a reader", f"closed by its sender; {result}")


@PASSING.experiment(
    statement="`socket.recv_fds` with too small a maxfds loses the rest; only MSG_CTRUNC shows it",
    belief="it raises, or the rest stays for the next call",
    control="a maxfds for all",
)
def rights_are_truncated(control: bool) -> Observation:
    with _channel() as (here, there):
        socket.send_fds(here, [b"x"], [here.fileno()] * 3)
        found = socket.recv_fds(there, 1, 3 if control else 1)
        return _truncated(found, 3)


@PASSING.experiment(
    statement="a receiver at its RLIMIT_NOFILE loses descriptors; only MSG_CTRUNC shows it",
    belief="it raises EMFILE",
    control="the limit is not lowered",
)
def rights_are_lost_at_the_limit(control: bool) -> Observation:
    with _channel() as (here, there):
        socket.send_fds(here, [b"x"], [here.fileno()])

        def child() -> str:
            if not control:
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            _, fds, flags, _ = socket.recv_fds(there, 1, 1)
            return f"{len(fds)} of 1 came, MSG_CTRUNC is {bool(flags & socket.MSG_CTRUNC)}"

        result = in_fork(child)
    return Observation(result == "0 of 1 came, MSG_CTRUNC is True", result)


def _truncated(found: tuple[bytes, list[int], int, object], sent: int) -> Observation:
    _, fds, flags, _ = found
    for fd in fds:
        os.close(fd)
    result = f"{len(fds)} of {sent} came, MSG_CTRUNC is {bool(flags & socket.MSG_CTRUNC)}"
    return Observation(len(fds) < sent and bool(flags & socket.MSG_CTRUNC), result)


@PASSING.experiment(
    statement="one message takes 253 descriptors; more are EINVAL",
    belief="as many as may be open",
    control="253 are sent",
)
def rights_have_a_limit(control: bool) -> Observation:
    with _channel() as (here, _there):
        count = 253 if control else 254
        try:
            socket.send_fds(here, [b"x"], [here.fileno()] * count)
            result = "sent"
        except OSError as error:
            result = errno_name(error)
    return Observation(result == "EINVAL", f"{count} descriptors: {result}")
