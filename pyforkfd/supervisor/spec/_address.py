"""The address of a listener, taken apart: pure."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

KINDS = (
    "tcp://host:port, udp://host:port, unix:/path, unix:@name, unixgram:/path, "
    "unixpacket:/path, vsock:port, systemd:NAME"
)
_INTERNET = re.compile(r"(tcp|udp)://(?:\[([^]]*)\]|([^:/\[\]\s]{0,253})):([0-9]+)")
_UNIX = re.compile(r"(unix|unixgram|unixpacket):(.+)", re.DOTALL)
_VSOCK = re.compile(r"vsock:(?:([0-9]+|any):)?([0-9]+)")
_SYSTEMD = re.compile(r"systemd:(.+)")
_WORD = 2**32 - 1
_LONGEST = 107  # sun_path less its null byte, unix(7)


@dataclass(frozen=True, slots=True)
class Address:
    """An address, understood.

    Attributes:
        scheme: "tcp", "udp", "unix", "unixgram", "unixpacket", "vsock" or "systemd".
        where: host, path (``@name`` in the abstract namespace), cid, or the name that the
            service manager uses.
        port: of tcp, udp and vsock, else None.
    """

    scheme: str
    where: str
    port: int | None = None

    @property
    def is_path(self) -> bool:
        """It is a name in the file system."""
        return self.scheme.startswith("unix") and not self.where.startswith("@")

    @property
    def is_internet(self) -> bool:
        """It has a host and a port."""
        return self.scheme in ("tcp", "udp")

    def clashes(self, other: Address) -> bool:
        """Only one of the two can be bound, as bind(2) sees it."""
        if self.is_path and other.is_path:
            return os.path.normpath(self.where) == os.path.normpath(other.where)
        if self.scheme != other.scheme or self.port != other.port:
            return False
        if not self.is_internet:
            return self.where == other.where
        if self.port == 0:
            return False
        return self.where == other.where or self._covers(other) or other._covers(self)

    def _covers(self, other: Address) -> bool:
        if self.where in ("", "::"):
            return True
        return self.where == "0.0.0.0" and ":" not in other.where


def parse_address(text: str) -> Address:
    """Take an address apart.

    Raises:
        ValueError: it is none, and why.
    """
    if match := _INTERNET.fullmatch(text):
        port = int(match[4])
        if port > 0xFFFF:
            raise ValueError(f'"{text}": port {port} is above 65535')
        if match[2]:
            try:
                ipaddress.IPv6Address(match[2])
            except ValueError:
                raise ValueError(f'"{text}": {match[2]} is not an IPv6 address') from None
        return Address(match[1], match[2] or match[3] or "", port)
    if match := _VSOCK.fullmatch(text):
        if max(int(part) for part in (match[1], match[2]) if part not in (None, "any")) > _WORD:
            raise ValueError(f'"{text}": cid and port have 32 bits')
        return Address("vsock", match[1] or "any", int(match[2]))
    if match := _SYSTEMD.fullmatch(text):
        return Address("systemd", match[1])
    if match := _UNIX.fullmatch(text):
        if "\0" in text:
            raise ValueError(f'"{text}": a null byte; the abstract namespace is unix:@name')
        if match[2].startswith("//"):
            raise ValueError(f'"{text}": write {match[1]}:/path, without //')
        if len(os.fsencode(match[2])) > _LONGEST:
            raise ValueError(f'"{text}": a path of a socket has at most {_LONGEST} bytes')
        if not match[2].startswith(("/", "@")):
            raise ValueError(f'"{text}": a relative path, which depends on where we start')
        return Address(match[1], match[2])
    if re.fullmatch(r"(\[.*\]|[^:/]*):[0-9]+", text):
        raise ValueError(f'"{text}" has no scheme: write tcp://{text}')
    if re.fullmatch(r"(tcp|udp)://(\[.*\]|[^:]*)", text):
        raise ValueError(f'"{text}" has no port: write {text}:PORT')
    if re.fullmatch(r"(tcp|udp)://[^\[/]*:[^/]*:[0-9]+", text):
        raise ValueError(f'"{text}": an IPv6 address is written in brackets, tcp://[::1]:80')
    raise ValueError(f'"{text}" is none of {KINDS}')
