"""The command line: ``pyforkfd COMMAND ...``, or ``python -m pyforkfd COMMAND ...``.

Each command is a module, which is imported only for this command.  A module has two functions:
``add_arguments(parser)``, and ``main(args)``, which returns the exit code; where a module has
several commands, each is an object with these two.  The words after ``--`` are not parsed: they
are the list ``args.command``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__
from ._entry_points import find
from ._standard_streams import restore_standard_streams

# name -> (module, or module:object in it, help)
_COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": (
        "pyforkfd.doctor._command",
        "examine this kernel, the descriptors of a process, or why a program has one",
    ),
    "run": (
        "pyforkfd._preload",
        "execute a program, and stop or log descriptors that leak to its children",
    ),
    "serve": (
        "pyforkfd.supervisor.commands._serve",
        "run a network service of many processes, and reload it without losing a request",
    ),
    "status": (
        "pyforkfd.supervisor.commands._status:status",
        "show the state of a service and of its workers",
    ),
    "reload": (
        "pyforkfd.supervisor.commands._commands:reload",
        "replace the workers of a service by a new generation; if that fails, change nothing",
    ),
    "rollback": (
        "pyforkfd.supervisor.commands._commands:rollback",
        "return to the generation that was paused by the last reload",
    ),
    "scale": (
        "pyforkfd.supervisor.commands._commands:scale",
        "change the number of workers of a component",
    ),
    "restart": (
        "pyforkfd.supervisor.commands._commands:restart",
        "replace single workers; each is drained when its replacement is ready",
    ),
    "signal": (
        "pyforkfd.supervisor.commands._commands:signal",
        "send a signal to all workers of a component",
    ),
    "logs": (
        "pyforkfd.supervisor.commands._commands:logs",
        "print the log of a service: records and output of its workers",
    ),
    "stop": (
        "pyforkfd.supervisor.commands._commands:stop",
        "stop a service, and wait until it has ended",
    ),
}
_ERROR = 2  # argparse's code for bad usage; 1 is a command's own negative answer


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
    restore_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]

    parser = argparse.ArgumentParser(
        prog="pyforkfd",
        description="Start programs, pass descriptors, and supervise services of many processes.",
        epilog="`pyforkfd COMMAND --help` describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"pyforkfd {__version__}")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    chosen = next((word for word in words if word in _COMMANDS), None)
    module: Any = None
    for name, (where, text) in _COMMANDS.items():
        below = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            module = find(where)
            module.add_arguments(below)
    args = parser.parse_args(words)
    args.command = command
    assert module is not None, "argparse requires a command"
    try:
        code: int = module.main(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `pyforkfd ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at exit
        return _ERROR
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        from ._tables import printable  # only where there is something to print

        text = printable(str(error), "\n\t")  # it quotes files, arguments and other processes
        print(f"pyforkfd {args.name}: {text}", file=sys.stderr)
        return _ERROR
    return code
