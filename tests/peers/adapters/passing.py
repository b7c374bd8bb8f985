"""sendmsg, recvmsg, recvmsg_into, send_fds and recv_fds of UNIX sockets, by pyforkfd.

What carries something other than whole descriptors goes the ordinary way.
"""

from __future__ import annotations

import array
import socket
from typing import Any

import pyforkfd as ff

RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
ordinary_sendmsg = socket.socket.sendmsg
ordinary_recvmsg = socket.socket.recvmsg
ordinary_recvmsg_into = socket.socket.recvmsg_into
sent = received = 0


def calls() -> int:
    return min(sent, received)


def send_fds(sock: Any, buffers: Any, fds: Any, flags: Any = 0, address: Any = None) -> Any:
    global sent
    sent += 1
    return ff.send_fds(sock, buffers, fds, flags=flags)


def recv_fds(sock: Any, bufsize: Any, maxfds: Any, flags: Any = 0) -> Any:
    global received
    received += 1
    try:
        came = ff.recv_fds(sock, bufsize, maxfds, flags=flags)
    except ff.PassingError as error:
        return error.data, [], socket.MSG_CTRUNC, None
    return came.data, [fd.detach() for fd in came.fds], came.flags, None


def sendmsg(self: Any, buffers: Any, ancdata: Any = (), flags: Any = 0, address: Any = None) -> Any:
    ancdata = [(level, kind, bytes(data)) for level, kind, data in ancdata]
    plain = self.family == socket.AF_UNIX and address is None
    if not plain or any(item[:2] != RIGHTS or len(item[2]) % 4 for item in ancdata):
        return ordinary_sendmsg(self, buffers, ancdata, flags, *([address] if address else []))
    return send_fds(self, buffers, array.array("i", b"".join(item[2] for item in ancdata)), flags)


def recvmsg(self: Any, bufsize: Any, ancbufsize: Any = 0, flags: Any = 0) -> Any:
    if self.family != socket.AF_UNIX:
        return ordinary_recvmsg(self, bufsize, ancbufsize, flags)
    maxfds = max(0, ancbufsize - socket.CMSG_LEN(0)) // 4
    data, fds, flags, address = recv_fds(self, bufsize, maxfds, flags)
    return data, [(*RIGHTS, array.array("i", fds).tobytes())] if fds else [], flags, address


def recvmsg_into(self: Any, buffers: Any, ancbufsize: Any = 0, flags: Any = 0) -> Any:
    if self.family != socket.AF_UNIX:
        return ordinary_recvmsg_into(self, buffers, ancbufsize, flags)
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    data, *rest = recvmsg(self, sum(map(len, views)), ancbufsize, flags)
    left = data
    for view in views:
        view[: len(left)], left = left[: len(view)], left[len(view) :]
    return len(data), *rest


socket.send_fds, socket.recv_fds = send_fds, recv_fds
for method in (sendmsg, recvmsg, recvmsg_into):
    setattr(socket.socket, method.__name__, method)
