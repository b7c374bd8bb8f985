"""The library for LD_PRELOAD, and `python -m pyforkfd run`, which starts a program under it."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ._checks import PYTHON_IGNORES
from ._executable import obstacle
from ._standard_streams import flush_streams
from ._trust import UntrustedPathError, is_privileged
from ._trusted_paths import walk

if TYPE_CHECKING:
    import argparse

_REFUSED, _CANNOT_EXECUTE, _NOT_FOUND = 125, 126, 127  # as env(1) and its kin exit


def preload_library() -> Path:
    """Return the path of ``libforkfd_preload.so``, for LD_PRELOAD; see docs/preload.md.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    path = Path(__file__).with_name("libforkfd_preload.so")
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "not installed with pyforkfd", str(path))
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``run``."""
    parser.add_argument(
        "--close-others",
        action="store_true",
        help="pass no descriptor above 2 on to another program by accident; without it, "
        "leaks are logged and passed on",
    )
    parser.add_argument(
        "--keep",
        metavar="3,7,NAME",
        action="append",
        default=[],
        help="descriptors to pass on, by number, or by the name of an environment variable "
        "that lists them",
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="a file that gets one line for each leak, or the number of a descriptor",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start the program even where the library cannot be loaded into it",
    )


def main(args: argparse.Namespace) -> int:
    """Execute the program in our place; return an exit code only where that fails."""
    command: list[str] = args.command
    try:
        if not command:
            raise _Refused("no command: run [options] -- CMD ...")
        if not args.close_others and args.log is None:
            raise _Refused("neither --close-others nor --log: nothing to do: add one of them")
        path = _find(command[0])
        reason = _why_not(path)
        if reason and not args.force:
            raise _Refused(f"{reason} (--force starts it nevertheless)")
        if reason:
            _complain(reason)
        settings = {
            b"FORKFD_CLOSE_OTHERS": b"1" if args.close_others else b"0",
            b"FORKFD_KEEP": _to_pass(args.keep),
            b"FORKFD_LOG": _log(args.log),
        }
        _execute(path, command, settings)
    except _Refused as refusal:
        _complain(str(refusal))
        return refusal.code
    except OSError as error:
        _complain(f"{error.filename or command[0]}: {error.strerror}")
        return _NOT_FOUND if error.errno == errno.ENOENT else _CANNOT_EXECUTE


def _complain(text: str) -> None:
    from ._tables import printable  # only where there is something to print

    print(f"pyforkfd run: {printable(text)}", file=sys.stderr)


class _Refused(Exception):
    def __init__(self, text: str, code: int = _REFUSED) -> None:
        super().__init__(text)
        self.code = code


def _find(name: str) -> str:
    """Return the first candidate of PATH that can be executed, as execvp(3) does."""
    if "/" in name:
        return name
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise _Refused(f"{name}: not found in PATH", _NOT_FOUND)


def _why_not(path: str) -> str | None:
    library = preload_library()
    if re.search(r"[\s:]", str(library)):
        return f"{library}: LD_PRELOAD cannot name a path with a space or a colon"
    try:
        return obstacle(path, library)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"{error.filename}: cannot be read, so whether it loads libraries is unknown"


def _to_pass(lists: Sequence[str]) -> bytes:
    words = [word for item in lists for word in re.split(r"[,\s]+", item) if word]
    for word in words:
        if not re.fullmatch(r"[0-9]+|[A-Za-z_][A-Za-z0-9_]*", word, re.ASCII):
            raise _Refused(f"--keep {word}: neither a descriptor nor the name of a variable")
    numbers = {word for word in words if word.isdigit()}
    # The limits of the library, csrc/preload/preload.h.
    if len(numbers) > 60 or len(words) - len(numbers) > 16:
        raise _Refused("--keep: more than 60 descriptors or 16 variables")
    return ",".join(words).encode()


def _log(name: str | None) -> bytes:
    if name is None:
        return b""
    if name.isdigit():
        try:
            os.set_inheritable(int(name), True)
        except (OSError, OverflowError):
            raise _Refused(f"--log {name}: descriptor {name} is not open") from None
        return name.encode()
    path = os.path.abspath(name)  # whatever directory a child is in
    if is_privileged():
        _open_trusted_log(name, path)
    else:
        with open(path, "ab"):
            pass
    return os.fsencode(path)


def _open_trusted_log(name: str, path: str) -> None:
    """Open a log once, which creates it; refuse one that another user has placed, or could.

    The library opens it by its path.

    Raises:
        _Refused: another user has, or could.
        OSError: it cannot be opened.
    """
    above, last = os.path.split(path)
    try:
        with walk(above) as directory:
            directory.demand_ours("the log")
            try:
                fd = directory.open_file(last, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.close(fd)
            except UntrustedPathError:
                raise
            except OSError as error:
                # A device or a FIFO, such as /dev/stderr, is the place's owner's to choose.
                if error.errno != errno.EINVAL or not directory.is_ours:
                    raise
                with open(path, "ab"):
                    pass
    except UntrustedPathError as error:
        raise _Refused(f"--log {name}: {error}") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, error.strerror, path) from None


def _execute(path: str, command: Sequence[str], settings: dict[bytes, bytes]) -> NoReturn:
    import ctypes

    env = dict(os.environb)
    # Python sets it for itself in the C locale (PEP 538); the program does not expect it.
    started_with = Path("/proc/self/environ").read_bytes().split(b"\0")
    if not any(entry.startswith(b"LC_CTYPE=") for entry in started_with):
        env.pop(b"LC_CTYPE", None)
    env |= settings
    library = os.fsencode(preload_library())
    # Behind other libraries: a sanitizer must be the first.
    others = [word for word in re.split(rb"[ :]+", env.get(b"LD_PRELOAD", b"")) if word]
    env[b"LD_PRELOAD"] = b":".join([*(word for word in others if word != library), library])

    os.environb.update(settings)  # the library reads them when it is loaded here
    # It marks our own descriptors by the same rule, logs them, and executes.
    loaded = ctypes.CDLL(os.fsdecode(library), use_errno=True)
    arguments = [os.fsencode(word) for word in command]
    entries = [name + b"=" + value for name, value in env.items()]
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*arguments)
    envp = (ctypes.c_char_p * (len(entries) + 1))(*entries)
    flush_streams()
    # Python ignores them for itself, and exec would pass that on.
    ignored = {signum: signal.signal(signum, signal.SIG_DFL) for signum in PYTHON_IGNORES}
    loaded.forkfd_preload_exec(os.fsencode(path), argv, envp)
    for signum, handler in ignored.items():
        signal.signal(signum, handler)
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
