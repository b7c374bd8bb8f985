"""The command line: ``python -m pyforkfd COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Name -> module and what it does.  A module is imported when its command is asked for, and
# offers add_arguments(parser) and main(args).
_COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("_preload", "execute a program and stop descriptors from leaking to its children"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m pyforkfd")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    for name, (_, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if words[:1] == [name]:
            module = importlib.import_module(f".{_COMMANDS[name][0]}", __package__)
            module.add_arguments(command)
    args = parser.parse_args(words)
    code: int = importlib.import_module(f".{_COMMANDS[args.name][0]}", __package__).main(args)
    return code
