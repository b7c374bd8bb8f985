"""The obstacles to preloading a library into a program: ld.so(8), elf(5), execve(2)."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

_PT_INTERP = 3
_MAX_SCRIPTS = 5  # the kernel follows no more, fs/exec.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """The parts of an ELF file that decide how it is loaded.

    Attributes:
        layout: class and byte order, of e_ident.
        machine: e_machine.
        loader: path of the dynamic loader; None for a static program or a library.
    """

    layout: tuple[int, int]
    machine: int
    loader: str | None


def obstacle(path: str, library: Path) -> str | None:
    """Return the reason why the library would not be loaded into the program; None if it would.

    Args:
        path: the program, or a script, whose interpreter is examined.
        library: the library that LD_PRELOAD is to name.

    Raises:
        OSError: a file cannot be read.
    """
    program, elf = _program(path)
    if program is None:
        return f"{path} names too many interpreters of interpreters"
    through = "" if program == path else f"{path} is a script of {program}, which "
    subject = through or f"{path} "
    if elf is None:
        return f"{subject}is neither ELF nor a script"
    ours = _read_elf(library)
    if ours is None:
        return f"{library} is no ELF file"
    if (elf.layout, elf.machine) != (ours.layout, ours.machine):
        return f"{subject}is of another architecture than {library.name}"
    if elf.loader is None:
        return f"{subject}is statically linked: it has no loader that could preload a library"
    mine = _read_elf("/proc/self/exe")
    if mine and mine.loader and _is_musl(elf.loader) != _is_musl(mine.loader):
        return f"{subject}is of another C library ({elf.loader}) than {library.name}"
    if reason := _is_secure(program):
        return f"{subject}{reason}: the loader ignores LD_PRELOAD there"
    return None


def _is_musl(loader: str) -> bool:
    return "musl" in os.path.basename(loader)


def _program(path: str) -> tuple[str | None, Elf | None]:
    """Return the file that the kernel will load for a path, behind scripts."""
    for _ in range(_MAX_SCRIPTS + 1):
        with open(path, "rb") as file:
            head = file.read(256)  # as much as the kernel reads
        if not head.startswith(b"#!"):
            return path, _read_elf(path)
        words = head[2:].split(b"\n")[0].split()
        if not words:
            return path, None
        path = os.fsdecode(words[0])
    return None, None


def _read_elf(path: str | Path) -> Elf | None:
    with open(path, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF":
            return None
        wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
        (machine,) = struct.unpack_from(order + "H", head, 18)
        (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        loader = None
        for index in range(count):
            file.seek(table + index * size)
            entry = file.read(size)
            if struct.unpack_from(order + "I", entry)[0] != _PT_INTERP:
                continue
            if wide:
                offset, length = struct.unpack_from(order + "8xQ16xQ", entry, 0)
            else:
                offset, length = struct.unpack_from(order + "4xI8xI", entry, 0)
            file.seek(offset)
            loader = os.fsdecode(file.read(length).rstrip(b"\0"))
    return Elf(layout=(head[4], head[5]), machine=machine, loader=loader)


def _is_secure(path: str) -> str | None:
    """Return the reason why the kernel will set AT_SECURE, getauxval(3): other credentials."""
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        return "would run with an effective user or group that is not the real one"
    info = os.stat(path)
    ignored = os.statvfs(path).f_flag & os.ST_NOSUID or _no_new_privs()
    if ignored:
        return None
    if info.st_mode & stat.S_ISUID and info.st_uid != os.getuid():
        return "is set-user-ID"
    # Without execution for the group the bit has another meaning, inode(7).
    if info.st_mode & stat.S_ISGID and info.st_mode & stat.S_IXGRP and info.st_gid != os.getgid():
        return "is set-group-ID"
    if os.getuid() != 0:
        try:
            os.getxattr(path, "security.capability")
        except OSError:
            return None
        return "has file capabilities"
    return None


def _no_new_privs() -> bool:
    status = Path("/proc/self/status").read_text()
    return "NoNewPrivs:\t1" in status
