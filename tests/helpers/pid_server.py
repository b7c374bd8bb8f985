"""A worker that answers each line with its pid; after SIGTERM the last answer is "PID close".

Accepts on descriptor 3, as of LISTEN_FDS; imports nothing of ours.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket


def serve(listener: socket.socket) -> None:
    leaving = False
    alarm, rung = socket.socketpair()
    # Held to the end, so that a worker's descriptors are the same from READY on.
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with selectors.DefaultSelector() as selector, alarm, rung, notify:
        rung.setblocking(False)
        signal.set_wakeup_fd(rung.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(alarm, selectors.EVENT_READ)
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        while not leaving or len(selector.get_map()) > 1:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is alarm:
                    alarm.recv(16)
                    if not leaving:
                        leaving = True
                        selector.unregister(listener)
                        listener.close()
                elif sock is listener:
                    if listener.fileno() < 0:
                        continue
                    try:
                        accepted, _ = listener.accept()
                    except BlockingIOError:
                        continue  # another worker was faster
                    selector.register(accepted, selectors.EVENT_READ)
                else:
                    answer(selector, sock, leaving)


def answer(selector: selectors.BaseSelector, sock: socket.socket, leaving: bool) -> None:
    if request := sock.recv(100):
        sock.sendall(b"%d%s\n" % (os.getpid(), b" close" if leaving else b""))
    if leaving or not request:
        selector.unregister(sock)
        sock.close()


def main() -> None:
    with socket.socket(fileno=3) as listener:
        serve(listener)


if __name__ == "__main__":
    main()
