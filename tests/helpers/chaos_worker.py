"""Workers of the chaos test, and a user who floods; all misbehave on request.

As a program: ``print`` writes numbered lines, as fast as it can for a moment after SIGUSR1;
``flood PATH SECONDS`` sends datagrams to a socket as another user.  ``serve`` is a function for
a zygote: the worker answers as pid_server.py does, logs, sends garbage after SIGUSR2, and shuts
its listener down after SIGURG.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import time

LINE = "line %d end of %d"
FLOOD_SECONDS = 0.3
_PAUSE = 0.02  # seconds between two lines, or two records
_ANCESTORS = 14


def print_lines() -> None:
    flood_until = 0.0

    def flood(*_: object) -> None:
        nonlocal flood_until
        flood_until = time.monotonic() + FLOOD_SECONDS

    signal.signal(signal.SIGUSR1, flood)
    number = 0
    while True:
        count = 1000 if time.monotonic() < flood_until else 1
        lines = "".join(LINE % (n, n) + "\n" for n in range(number, number + count))
        number += count
        data = memoryview(lines.encode())
        while data:
            data = data[os.write(1, data) :]
        if count == 1:
            time.sleep(_PAUSE)


def flood(path: str, seconds: float) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    end = time.monotonic() + seconds
    for _ in range(_ANCESTORS):  # who is looked for among the workers' descendants
        if pid := os.fork():
            os.waitpid(pid, 0)
            os._exit(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        while time.monotonic() < end:
            try:
                client.sendto(b"READY=1\nSTATUS=flood", path)
            except TimeoutError:
                continue
            except OSError:  # it is removed with its service
                return


def serve(listener_name: str) -> None:
    # Here: the other roles run without site-packages, and start faster.
    import garbage

    from pyforkfd.supervisor import worker

    me = worker.current()
    assert me is not None
    me.setup_logging()
    log = logging.getLogger("chaos")
    requested: list[int] = []
    # SIGTERM drains too: it comes where the generation is given up before READY was read.
    for each in (signal.SIGUSR2, signal.SIGURG, signal.SIGTERM):
        signal.signal(each, lambda number, _: requested.append(number))
    listener = me.listeners()[listener_name]
    listener.setblocking(False)
    connections: set[socket.socket] = set()
    next_record, record = 0.0, 0
    with selectors.DefaultSelector() as selector:
        selector.register(me.fileno(), selectors.EVENT_READ)
        me.ready("serving")
        accepting = leaving = False
        while not (me.orphaned or (leaving and not connections)):
            if (me.accepting and not leaving) != accepting:
                accepting = not accepting
                if accepting:
                    selector.register(listener, selectors.EVENT_READ)
                else:
                    selector.unregister(listener)
            for key, _ in selector.select(_PAUSE):
                sock = key.fileobj
                if sock is listener:
                    try:
                        accepted, _ = listener.accept()
                    except BlockingIOError:
                        continue  # another worker was faster
                    except OSError:  # it was shut down
                        time.sleep(_PAUSE)
                        continue
                    accepted.setblocking(True)
                    connections.add(accepted)
                    selector.register(accepted, selectors.EVENT_READ)
                elif isinstance(sock, socket.socket) and not _answer(sock, leaving=leaving):
                    connections.remove(sock)
                    selector.unregister(sock)
                    sock.close()
            me.poll(0.0)
            leaving = leaving or me.draining
            if time.monotonic() >= next_record:
                next_record = time.monotonic() + _PAUSE
                log.info("record %d", record)
                record += 1
            while requested:
                signum = requested.pop()
                if signum == signal.SIGURG:
                    listener.shutdown(socket.SHUT_RDWR)
                if signum != signal.SIGUSR2:
                    leaving = leaving or signum == signal.SIGTERM
                    continue
                with garbage.raw(me) as channel:
                    channel.setblocking(False)
                    _send_garbage(garbage.GARBAGE, channel)
    log.info("leaving")


def _answer(sock: socket.socket, *, leaving: bool) -> bool:
    """Answer one request; return whether the connection stays."""
    try:
        request = sock.recv(100)
        if request:
            sock.sendall(b"%d%s\n" % (os.getpid(), b" close" if leaving else b""))
    except OSError:
        return False
    return bool(request) and not leaving


def _send_garbage(kinds: list[tuple[str, bytes, str]], channel: socket.socket) -> None:
    import garbage

    for name, data, _ in kinds:
        try:
            reader = garbage.send(channel, name, data)
        except OSError:  # the channel is full
            continue
        if reader is not None:
            os.close(reader)


def main() -> None:
    role, *arguments = sys.argv[1:]
    if role == "print":
        print_lines()
    else:
        flood(arguments[0], float(arguments[1]))


if __name__ == "__main__":
    main()
