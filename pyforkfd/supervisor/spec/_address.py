"""The parts of a listener's address: pure."""

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
_LONGEST_ADDRESS = 300  # characters: a host name has 253 at most
_LONGEST = 107  # sun_path less its null byte, unix(7)


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an address.

    Attributes:
        scheme: "tcp", "udp", "unix", "unixgram", "unixpacket", "vsock" or "systemd".
        location: host, path (``@name`` in the abstract namespace), cid, or the service
            manager's name of the socket.
        port: port of tcp, udp and vsock, else None.
    """

    scheme: str
    location: str
    port: int | None = None

    @property
    def is_path(self) -> bool:
        """Whether the address is a name in the file system."""
        return self.scheme.startswith("unix") and not self.location.startswith("@")

    @property
    def is_internet(self) -> bool:
        """Whether the address has a host and a port."""
        return self.scheme in ("tcp", "udp")

    def clashes(self, other: Address) -> bool:
        """Whether bind(2) refuses one of the two while the other is bound."""
        if self.is_path and other.is_path:
            return os.path.normpath(self.location) == os.path.normpath(other.location)
        if self.scheme != other.scheme or self.port != other.port:
            return False
        if not self.is_internet:
            return self.location == other.location
        if self.port == 0:
            return False
        return self.location == other.location or self._covers(other) or other._covers(self)

    def _covers(self, other: Address) -> bool:
        if self.location in ("", "::"):
            return True
        return self.location == "0.0.0.0" and ":" not in other.location


def parse_address(text: str) -> Address:
    """Split an address into its parts.

    Raises:
        ValueError: the text is no address; the message has the reason and what to write.
    """
    if len(text) > _LONGEST_ADDRESS:
        raise ValueError(f'"{text[:60]}...": has {len(text)} characters; write one of {KINDS}')
    if match := _INTERNET.fullmatch(text):
        port = int(match[4])
        if port > 0xFFFF:
            raise ValueError(f'"{text}": port {port} is out of range; write 0 to 65535')
        if match[2]:
            try:
                ipaddress.IPv6Address(match[2])
            except ValueError:
                raise ValueError(
                    f'"{text}": {match[2]} is not an IPv6 address; write tcp://[::1]:80'
                ) from None
        return Address(match[1], match[2] or match[3] or "", port)
    if match := _VSOCK.fullmatch(text):
        if max(int(part) for part in (match[1], match[2]) if part not in (None, "any")) > _WORD:
            raise ValueError(f'"{text}": cid or port is out of range; write 0 to {_WORD}')
        return Address("vsock", match[1] or "any", int(match[2]))
    if match := _SYSTEMD.fullmatch(text):
        return Address("systemd", match[1])
    if match := _UNIX.fullmatch(text):
        if "\0" in text:
            raise ValueError(
                f'"{text}": has a null byte; write unix:@name for the abstract namespace'
            )
        if match[2].startswith("//"):
            raise ValueError(f'"{text}" begins with //; write {match[1]}:/path')
        if len(os.fsencode(match[2])) > _LONGEST:
            raise ValueError(f'"{text}": the path is too long; write at most {_LONGEST} bytes')
        if not match[2].startswith(("/", "@")):
            raise ValueError(
                f'"{text}": the path is relative to where the supervisor starts; write /path'
            )
        return Address(match[1], match[2])
    if re.fullmatch(r"(\[.*\]|[^:/]*):[0-9]+", text):
        raise ValueError(f'"{text}" has no scheme; write tcp://{text}')
    if re.fullmatch(r"(tcp|udp)://(\[.*\]|[^:]*)", text):
        raise ValueError(f'"{text}" has no port; write {text}:PORT')
    if re.fullmatch(r"(tcp|udp)://[^\[/]*:[^/]*:[0-9]+", text):
        raise ValueError(f'"{text}": an IPv6 address needs brackets; write tcp://[::1]:80')
    raise ValueError(f'"{text}" is not an address; write one of {KINDS}')
