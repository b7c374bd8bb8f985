"""The command line: ``pyforkfd COMMAND ...``, or ``python -m pyforkfd COMMAND ...``.

Each command is a module that is imported when it is used, and has two functions:
``add_arguments(parser)``, and ``main(args)``, which returns the exit code; where a module has
several commands, each is an object with these two.  Words after ``--`` are not parsed: they
are the list ``args.command``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__
from ._targets import resolve

# name -> (module, or module:object in it, help)
_COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": (
        "pyforkfd.doctor._command",
        "show how this kernel and Python treat descriptors, or the descriptors of a process",
    ),
    "run": (
        "pyforkfd._preload",
        "execute the program after --, and stop descriptors from leaking to its children",
    ),
    "serve": (
        "pyforkfd.supervisor.commands._serve",
        "run a network service of many processes, and reload it without losing a request",
    ),
    "status": ("pyforkfd.supervisor.commands._status:status", "show the state of a service"),
    "reload": (
        "pyforkfd.supervisor.commands._commands:reload",
        "replace the workers of a service by a new generation; if that fails, nothing changes",
    ),
    "rollback": (
        "pyforkfd.supervisor.commands._commands:rollback",
        "go back to the generation that is paused since the last reload",
    ),
    "scale": (
        "pyforkfd.supervisor.commands._commands:scale",
        "change the number of workers of a component",
    ),
    "restart": (
        "pyforkfd.supervisor.commands._commands:restart",
        "replace single workers; each leaves when another is ready in its place",
    ),
    "signal": (
        "pyforkfd.supervisor.commands._commands:signal",
        "send a signal to all workers of a component",
    ),
    "logs": (
        "pyforkfd.supervisor.commands._commands:logs",
        "show the output of the workers of a service",
    ),
    "stop": (
        "pyforkfd.supervisor.commands._commands:stop",
        "end a service, and wait until it has ended",
    ),
}
_ERROR = 2  # argparse's code for bad usage; 1 is a result


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit code of the command, or 2 after an error, which is one line on standard
        error.

    Raises:
        SystemExit: argparse ends the program: bad usage, ``--help``, ``--version``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]

    parser = argparse.ArgumentParser(
        prog="pyforkfd", description="fork, exec and file descriptors done right"
    )
    parser.add_argument("--version", action="version", version=f"pyforkfd {__version__}")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    chosen = next((word for word in words if word in _COMMANDS), None)
    module: Any = None
    for name, (where, text) in _COMMANDS.items():
        below = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            module = resolve(where) if ":" in where else importlib.import_module(where)
            module.add_arguments(below)
    args = parser.parse_args(words)
    args.command = command
    assert module is not None, "argparse demands a command"
    try:
        code: int = module.main(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `pyforkfd ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at exit
        return _ERROR
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"pyforkfd {args.name}: {error}", file=sys.stderr)
        return _ERROR
    return code
