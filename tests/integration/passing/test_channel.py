"""FdChannel: whole messages with descriptors, in threads, on asyncio, across fork and exec."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children, identity
from interrupts import interrupted_after

import pyforkfd as ff

MANY = 300


@pytest.fixture
def pair() -> Iterator[tuple[ff.FdChannel, ff.FdChannel]]:
    one, other = ff.FdChannel.pair(max_fds=3000)
    with one, other:
        yield one, other


@pytest.fixture
def files() -> Iterator[list[int]]:
    fds = [os.memfd_create(f"file {i}") for i in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def fill(channel: ff.FdChannel) -> int:
    """Send until there is no room."""
    count = 0
    while True:
        try:
            channel.send(b"x" * 1000, timeout=0)
        except TimeoutError:
            return count
        count += 1


def test_messages_stay_whole(pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]) -> None:
    pair[0].send(b"first", files[:2])
    pair[0].send(b"second")
    pair[0].send([b"thi", b"rd"], files[2:])
    pair[0].send(b"", files[:1])
    for data, fds in (
        (b"first", files[:2]),
        (b"second", []),
        (b"third", files[2:]),
        (b"", files[:1]),
    ):
        with pair[1].recv() as message:
            assert message.data == data
            assert [identity(fd.fileno()) for fd in message.fds] == [identity(fd) for fd in fds]
            assert all(ff.cloexec(fd) for fd in message.fds)


def test_both_ways_and_many(pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]) -> None:
    for count in (1, 253, 254, MANY, 900):
        for sender, receiver in (pair, pair[::-1]):
            sender.send(b"%d" % count, files[:1] * count)
            with receiver.recv(timeout=10) as message:
                assert (message.data, len(message.fds)) == (b"%d" % count, count)


def test_the_end(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    pair[0].send(b"last")
    pair[0].close()
    pair[0].close()
    assert pair[0].closed
    assert [message.data for message in pair[1]] == [b"last"]
    for _ in range(2):
        with pytest.raises(EOFError, match="the other end of the channel is closed"):
            pair[1].recv()
    with pytest.raises(BrokenPipeError):
        pair[1].send(b"x")
    with pytest.raises(ValueError, match="closed or detached"):
        pair[0].recv()
    with pytest.raises(ValueError, match="closed or detached"):
        pair[0].send(b"x")


def test_an_end_with_messages_unread(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    pair[0].send(b"never read")
    pair[1].close()
    with pytest.raises(ConnectionResetError):
        pair[0].recv()
    with pytest.raises(EOFError):
        pair[0].recv()


def test_an_empty_message_would_be_the_end(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    with pytest.raises(ValueError, match="an empty message would mean the end of the channel"):
        pair[0].send(b"")
    with pytest.raises(ValueError, match="an empty message"):
        pair[0].send([b"", b""])


def test_max_message(files: list[int]) -> None:
    one, other = ff.FdChannel.pair(max_message=10, max_fds=2)
    with one, other:
        one.send(b"x" * 11, files)
        with pytest.raises(ff.PassingError) as caught:
            other.recv()
        one.send(b"x" * 11, files[:2])
        with pytest.raises(
            ff.PassingError, match="a message of 11 bytes came, the buffer has 10"
        ) as caught:
            other.recv()
        assert (caught.value.errno, caught.value.closed) == (errno.EMSGSIZE, 2)
        one.send(b"x", files[:3])
        with pytest.raises(ff.PassingError, match="more descriptors came than max_fds, which is 2"):
            other.recv()
        one.send(b"x" * 10, files[:2])
        with other.recv() as message:  # the next one is whole
            assert (len(message.data), len(message.fds)) == (10, 2)
        size = resource.getpagesize() * 1000
        with pytest.raises(OSError, match=f"a message of {size} bytes, SO_SNDBUF is"):
            one.send(b"x" * size)
    for bad in ({"max_message": 0}, {"max_fds": -1}):
        with pytest.raises(ValueError):
            ff.FdChannel.pair(**bad)


def test_times(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match=f"recv: no message within {timeout} s"):
            pair[1].recv(timeout=timeout)
    sent = fill(pair[0])
    with pytest.raises(TimeoutError, match=r"send: the receiver's buffer was full for 0.01 s"):
        pair[0].send(b"x", timeout=0.01)
    for _ in range(sent):
        pair[1].recv(timeout=0).close()
    with pytest.raises(TimeoutError):
        pair[1].recv(timeout=0)


def test_a_sender_that_waits_for_room(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    sent = fill(pair[0])
    thread = threading.Thread(target=lambda: pair[0].send(b"waited"))
    thread.start()
    received = [pair[1].recv().data for _ in range(sent + 1)]
    thread.join()
    assert received[-1] == b"waited"


def stuck(pair: tuple[ff.FdChannel, ff.FdChannel]) -> int:
    """The number of descriptors of a transfer for which there is no room at once."""
    with socket.socket(fileno=os.dup(pair[0].fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    return 252 * 10


def test_a_transfer_that_is_left_goes_before_the_next(
    pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]
) -> None:
    count = stuck(pair)
    with ff.Fd(os.memfd_create("mine")) as mine:
        kind = identity(mine.fileno())
        with pytest.raises(TimeoutError):
            pair[0].send(b"big", [mine] * count, timeout=0)
    # Ours is closed; what was not yet sent is a duplicate.
    thread = threading.Thread(target=lambda: pair[0].send(b"next", files))
    thread.start()
    with pair[1].recv() as message:
        assert message.data == b"big" and len(message.fds) == count
        assert identity(message.fds[-1].fileno()) == kind
    with pair[1].recv() as message:
        assert message.data == b"next" and len(message.fds) == len(files)
    thread.join()


def test_a_transfer_that_is_left_goes_with_the_channel(
    pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]
) -> None:
    with pytest.raises(TimeoutError):
        pair[0].send(b"big", files[:1] * stuck(pair), timeout=0)
    with pytest.raises(TimeoutError):
        pair[1].recv(timeout=0)
    pair[0].close()
    with pytest.raises(ff.PassingError, match="the sender was gone"):
        pair[1].recv()
    with pytest.raises(EOFError):
        pair[1].recv()


def test_many_threads(pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]) -> None:
    got: list[tuple[bytes, int]] = []

    def send(name: int) -> None:
        for i in range(50):
            count = MANY if i % 10 == 0 else i % 4
            pair[0].send(b"%d %d %d" % (name, i, count), files[:1] * count)

    def receive() -> None:
        for message in pair[1]:
            with message:
                got.append((message.data, len(message.fds)))

    receivers = [threading.Thread(target=receive) for _ in range(3)]
    senders = [threading.Thread(target=send, args=(i,)) for i in range(4)]
    for thread in receivers + senders:
        thread.start()
    for thread in senders:
        thread.join()
    pair[0].close()
    for thread in receivers:
        thread.join()
    assert len({data for data, _ in got}) == len(got) == 200
    assert all(int(data.split()[2]) == count for data, count in got)


def test_a_signal_handler_ends_a_wait(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    with interrupted_after(0.01):
        pair[1].recv()


# asyncio.


def test_async_both_ways(pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]) -> None:
    async def serve() -> int:
        served = 0
        async for message in pair[1]:
            with message:
                await pair[1].send_async(message.data, message.fds)
                served += 1
        return served

    async def main() -> None:
        server = asyncio.create_task(serve())
        for count in (1, 253, MANY, 2000):
            await pair[0].send_async(b"%d" % count, files[:1] * count)
            with await pair[0].recv_async() as message:
                assert (message.data, len(message.fds)) == (b"%d" % count, count)
        pair[0].close()
        assert await server == 4

    asyncio.run(main())


def test_cancelled_receivers_lose_nothing(
    pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]
) -> None:
    async def main() -> None:
        for round_ in range(30):
            tasks = [asyncio.create_task(pair[1].recv_async()) for _ in range(4)]
            await asyncio.sleep(0)
            if round_ % 3 == 0:
                pair[0].send(b"%d" % round_, files)  # readable, and cancelled before it ran
            for task in tasks[: 4 if round_ % 3 else 3]:
                task.cancel()
            if round_ % 3 == 0:
                pair[0].send(b"more", files)
            done = await asyncio.gather(*tasks, return_exceptions=True)
            got = [message for message in done if isinstance(message, ff.Received)]
            while len(got) < 2 * (round_ % 3 == 0):
                got.append(pair[1].recv(timeout=0))
            with pytest.raises(TimeoutError):
                pair[1].recv(timeout=0)
            assert [m.data for m in got] == ([b"%d" % round_, b"more"] if round_ % 3 == 0 else [])
            for message in got:
                message.close()

    asyncio.run(main())


def test_a_receiver_cancelled_within_a_transfer(
    pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]
) -> None:
    count = stuck(pair)

    async def main() -> None:
        receiver = asyncio.create_task(pair[1].recv_async())
        sender = asyncio.create_task(pair[0].send_async(b"big", files[:1] * count))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        receiver.cancel()
        await asyncio.gather(receiver, return_exceptions=True)
        with await pair[1].recv_async() as message:
            assert (message.data, len(message.fds)) == (b"big", count)
        await sender

    asyncio.run(main())


def test_a_sender_cancelled_within_a_transfer(
    pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]
) -> None:
    count = stuck(pair)

    async def main() -> None:
        sender = asyncio.create_task(pair[0].send_async(b"big", files[:1] * count))
        await asyncio.sleep(0)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        after = asyncio.create_task(pair[0].send_async(b"after"))
        for data, many in ((b"big", count), (b"after", 0)):
            with await pair[1].recv_async() as message:
                assert (message.data, len(message.fds)) == (data, many)
        await after

    asyncio.run(main())


def test_async_errors(pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(pair[1].recv_async())
        await asyncio.sleep(0)
        pair[0].close()
        with pytest.raises(EOFError):
            await waiting
        with pytest.raises(BrokenPipeError):
            await pair[1].send_async(b"x", files)
        pair[1].close()
        with pytest.raises(ValueError):
            await pair[1].recv_async()

    asyncio.run(main())


# Addresses.


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/channel" if request.param == "path" else f"@forkfd-channel-{os.getpid()}"


def test_listen_and_connect(address: str, files: list[int]) -> None:
    with (
        ff.FdChannel.listen(address) as listener,
        ff.FdChannel.connect(address) as client,
        listener.accept() as server,
    ):
        client.send(b"hello", files)
        with server.recv() as message:
            assert (message.data, len(message.fds)) == (b"hello", 4)
        assert server.peer_credentials().pid == os.getpid()
        with server.peer_pidfd(by_pid=True) as pidfd:
            assert ff.cloexec(pidfd)
        with pytest.raises(TimeoutError, match=r"accept: no connection within 0.01 s"):
            listener.accept(timeout=0.01)
        assert not os.get_inheritable(server.fileno()) and not os.get_inheritable(client.fileno())
        with pytest.raises(OSError, match=f"listen {address}: Address already in use"):
            ff.FdChannel.listen(address)
    with pytest.raises(ConnectionRefusedError, match=f"connect {address}: Connection refused"):
        ff.FdChannel.connect(address)
    with ff.FdChannel.listen(address):  # which a listener that is gone does not keep from
        pass


def test_accept_on_asyncio(address: str) -> None:
    async def main() -> None:
        with ff.FdChannel.listen(address) as listener:
            accepting = asyncio.create_task(listener.accept_async(max_message=4))
            await asyncio.sleep(0)
            with ff.FdChannel.connect(address) as client, await accepting as server:
                await client.send_async(b"four")
                assert (await server.recv_async()).data == b"four"

    asyncio.run(main())


def test_a_full_backlog(address: str) -> None:
    with (
        ff.FdChannel.listen(address, backlog=0),
        ff.FdChannel.connect(address),
        pytest.raises(TimeoutError, match=r"backlog full for 0.01 s"),
    ):
        ff.FdChannel.connect(address, timeout=0.01)


@pytest.mark.parametrize("timeout", [None, 20, 1e12])
def test_connecting_waits_for_the_backlog(address: str, timeout: float | None) -> None:
    """Also while signals come, which socket.connect() would take for the connection."""
    runs: list[int] = []
    made: list[ff.FdChannel] = []
    with ff.FdChannel.listen(address, backlog=0) as listener, ff.FdChannel.connect(address):
        ready = threading.Event()

        def accept_two() -> None:
            ready.wait()
            for _ in range(2):
                made.append(listener.accept(timeout=20))

        def handler(number: int, frame: object) -> None:
            runs.append(number)
            if len(runs) == 3:
                ready.set()

        before = signal.signal(signal.SIGALRM, handler)
        thread = threading.Thread(target=accept_two)
        thread.start()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            with ff.FdChannel.connect(address, timeout=timeout) as client:
                signal.setitimer(signal.ITIMER_REAL, 0)
                thread.join()
                made[1].send(b"hello")
                assert client.recv().data == b"hello"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            ready.set()
            thread.join()
            for channel in made:
                channel.close()
    assert len(runs) >= 3


def test_addresses_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: No such file"):
        ff.FdChannel.connect(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="only a path has a mode"):
        ff.FdChannel.listen("@name", mode=0o600)
    with pytest.raises(OSError, match="too long"):
        ff.FdChannel.connect("/" + "x" * 200)
    with ff.FdChannel.listen(tmp_path / "mode", mode=0o640):
        assert (tmp_path / "mode").stat().st_mode & 0o777 == 0o640


# Adoption.


def test_adoption_says_what_is_wrong(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (
        ff.Fd(reader),
        ff.Fd(writer),
        socket.socket() as tcp,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as alone,
        socket.socket(socket.AF_UNIX) as stream,
        ff.FdChannel.listen(tmp_path / "listener") as listener,
    ):
        for fd, code, text in (
            (reader, errno.ENOTSOCK, "is a pipe, not a socket"),
            (tcp.fileno(), errno.EPROTOTYPE, "is a TCP socket, not a Unix seqpacket socket"),
            (stream.fileno(), errno.EPROTOTYPE, "is a Unix stream socket, not a Unix seqpacket"),
            (alone.fileno(), errno.ENOTCONN, "is a Unix SOCK_SEQPACKET socket but not connected"),
            (listener.fileno(), errno.EINVAL, "but listens: accept"),
        ):
            with pytest.raises(ff.ChannelError, match=f"descriptor {fd} .*{text}") as caught:
                ff.FdChannel(fd)
            assert (caught.value.errno, caught.value.fd) == (code, fd)
            os.fstat(fd)
    with pytest.raises(ff.ChannelError, match="is closed: if a parent was to pass it"):
        ff.FdChannel(reader)


def test_adoption_takes(pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    number = pair[0].detach()
    os.set_inheritable(number, True)
    with ff.FdChannel(number) as again:
        assert not os.get_inheritable(number)
        again.send(b"still connected")
        assert pair[1].recv().data == b"still connected"
    with pytest.raises(OSError):
        os.fstat(number)
    assert pair[0].closed and repr(pair[0]) == "<FdChannel closed>"


CHILD = """
import os, sys
import pyforkfd as ff
with ff.FdChannel(3, max_fds=1000) as channel:
    for message in channel:
        with message:
            for fd in message.fds:
                os.pwrite(fd.fileno(), message.data, 0)
            channel.send(b"%d" % len(message.fds), [ff.Fd(os.memfd_create("answer"))] * 1)
"""


def test_across_exec(children: Children, pair: tuple[ff.FdChannel, ff.FdChannel]) -> None:
    with ff.Fd(os.memfd_create("written by the child")) as file:
        with children.start(
            [sys.executable, "-P", "-W", "ignore", "-c", CHILD], fds={3: pair[1]}
        ) as child:
            pair[1].close()
            for count in (1, MANY):
                pair[0].send(b"%03d" % count, [file] * count)
                with pair[0].recv() as answer:
                    assert (answer.data, len(answer.fds)) == (b"%d" % count, 1)
                assert os.pread(file.fileno(), 10, 0) == b"%03d" % count
            pair[0].close()
        assert child.status is not None and child.status.success


def test_across_fork(pair: tuple[ff.FdChannel, ff.FdChannel], files: list[int]) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pair[0].close()
            with pair[1].recv() as message:
                pair[1].send(message.data, message.fds)
            code = 0
        finally:
            os._exit(code)
    pair[1].close()
    pair[0].send(b"there and back", files)
    with pair[0].recv() as message:
        assert message.data == b"there and back"
        assert [identity(fd.fileno()) for fd in message.fds] == [identity(fd) for fd in files]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_lock_that_another_thread_held_at_the_fork(
    pair: tuple[ff.FdChannel, ff.FdChannel],
) -> None:
    pair[1].send(b"x")
    with pair[0]._lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(10)
                code = 0 if pair[0].recv().data == b"x" else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
