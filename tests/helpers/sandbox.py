"""seccomp filters that refuse system calls, for tests of the fall-backs."""

from __future__ import annotations

import errno
import platform
import socket
import struct

CLOSE_RANGE = 436  # on every architecture

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
# Offsets in struct seccomp_data (little endian).
_NUMBER, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 24, 32
_SETSOCKOPT = 208 if platform.machine() == "aarch64" else 54
_SO_PASSRIGHTS = 83


def _program(code: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def refuse(numbers: list[int], err: int) -> bytes:
    """Refuse these system calls with an errno, and allow all others."""
    code = [(_LOAD, 0, 0, _NUMBER)]
    for i, number in enumerate(numbers):
        code.append((_EQUAL, len(numbers) - i, 0, number))
    return _program([*code, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | err)])


def refuse_command(number: int, command: int, err: int, *also: int) -> bytes:
    """Refuse one system call with this second argument, fcntl(fd, command), and all ``also``."""
    code = [(_LOAD, 0, 0, _NUMBER)]
    for i, other in enumerate(also):
        code.append((_EQUAL, len(also) - i + 3, 0, other))
    code += [
        (_EQUAL, 0, 2, number),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUAL, 1, 0, command),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | err),
    ]
    return _program(code)


def before_6_16() -> bytes:
    """Refuse SO_PASSRIGHTS, as kernels before Linux 6.16 do."""
    return _program(
        [
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 0, 2, _SETSOCKOPT),
            (_LOAD, 0, 0, _THIRD_ARGUMENT),
            (_EQUAL, 1, 0, _SO_PASSRIGHTS),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _ERRNO | errno.ENOPROTOOPT),
        ]
    )


def kernel_refuses() -> bool:
    """Return whether this kernel has SO_PASSRIGHTS, Linux 6.16."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True
