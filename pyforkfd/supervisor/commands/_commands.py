"""The commands that send a request to a running supervisor: reload, scale, stop and so on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pyforkfd._tables import printable
from pyforkfd.supervisor.control._client import ControlClient, find_path
from pyforkfd.supervisor.control._messages import ControlError
from pyforkfd.supervisor.spec._units import SIGNAL

_CODES = """exit code: 0 done; 1 refused or failed, the reason is on standard error; 2 bad usage, or
no such service runs."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line.

    Attributes:
        add_arguments: adds its arguments to a parser.
        main: runs it; returns the exit code.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]


def client(args: argparse.Namespace) -> ControlClient:
    """Connect to the service that the arguments name.

    Raises:
        OSError: as :class:`ControlClient`.
        ControlError: as :func:`find_path`.
    """
    return ControlClient(args.control or find_path(args.service))


def command(
    add: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, ControlClient], int],
) -> Command:
    """Return a command with the options and errors that all of them share.

    Args:
        add: adds the command's own arguments.
        run: sends its requests; returns the exit code.
    """

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.epilog = parser.epilog or _CODES
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "-s", "--service", metavar="NAME", help="name of the service; needed if several run"
        )
        which.add_argument(
            "--control",
            metavar="PATH",
            help="path of its control socket, if that is not the usual one",
        )
        add(parser)

    def main(args: argparse.Namespace) -> int:
        if args.command:
            raise ValueError(f"--: {args.name} takes no command; remove what follows")
        try:
            connection = client(args)
        except ControlError as error:
            raise ValueError(str(error)) from None
        try:
            with connection:
                return run(args, connection)
        except ControlError as error:
            text = printable(str(error), "\n\t")
            print(f"pyforkfd {args.name}: {text}", file=sys.stderr)
            return 1

    return Command(add_arguments, main)


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments of its own."""


def _add_components(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "components", nargs="*", metavar="COMPONENT", help="components; without any, all of them"
    )


def _reload(args: argparse.Namespace, service: ControlClient) -> int:
    reply = service.request("reload", timeout=None, components=args.components)
    print(f"generation {reply['generation']} serves")
    return 0


def _rollback(args: argparse.Namespace, service: ControlClient) -> int:
    reply = service.request("rollback", timeout=None)
    print(f"generation {reply['generation']} serves again")
    return 0


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("component", metavar="COMPONENT", help="name of the component")
    parser.add_argument(
        "count", type=int, metavar="N", help="number of workers that are to be ready"
    )


def _scale(args: argparse.Namespace, service: ControlClient) -> int:
    service.request("scale", component=args.component, count=args.count)
    return 0


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="kill the workers instead of waiting for their requests"
    )


def _stop(args: argparse.Namespace, service: ControlClient) -> int:
    service.request("stop", timeout=None, now=args.now)
    return 0


def _add_restart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workers", nargs="+", type=int, metavar="WORKER", help="id of a worker, as status has it"
    )


def _restart(args: argparse.Namespace, service: ControlClient) -> int:
    for worker_id in args.workers:
        service.request("restart", worker=worker_id)
    return 0


def _add_signal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("component", metavar="COMPONENT", help="name of the component")
    parser.add_argument("signal", metavar="SIGNAL", help="name (USR2, SIGUSR2) or number")


def _signal(args: argparse.Namespace, service: ControlClient) -> int:
    word = args.signal
    signum = int(word if word.isdecimal() else SIGNAL.read(word))
    reply = service.request("signal", component=args.component, signal=signum)
    print(f"sent to {reply['workers']} workers")
    return 0


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--follow", action="store_true", help="also print further lines, until Ctrl-C"
    )
    parser.add_argument(
        "-n",
        "--lines",
        type=int,
        default=100,
        metavar="N",
        help="print the last N lines (%(default)s)",
    )
    _add_components(parser)


def _logs(args: argparse.Namespace, service: ControlClient) -> int:
    messages = service.stream(
        "logs", components=args.components, lines=args.lines, follow=args.follow
    )
    for message in messages:
        for line in message.get("lines", ()):
            print(_escaped(line), flush=args.follow)
    return 0


def _escaped(line: str) -> str:
    """Escape in JSON what a terminal would obey: C1 controls and DEL stand in it as they are."""
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else json.dumps(c)[1:-1]
        for c in line
    )


reload = command(_add_components, _reload)
rollback = command(_add_nothing, _rollback)
scale = command(_add_scale, _scale)
stop = command(_add_stop, _stop)
restart = command(_add_restart, _restart)
signal = command(_add_signal, _signal)
logs = command(_add_logs, _logs)
