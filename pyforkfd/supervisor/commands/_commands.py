"""The commands that talk to a supervisor that runs: reload, scale, stop and so on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pyforkfd.supervisor.control._client import ControlClient, find_path
from pyforkfd.supervisor.control._messages import ControlError
from pyforkfd.supervisor.spec._units import SIGNAL

_CODES = "exit code: 0 done; 1 refused, or it failed, and why; 2 bad usage, or nobody to ask."


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line wants of a command."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]


def client(args: argparse.Namespace) -> ControlClient:
    """Connect to the service that the arguments mean.

    Raises:
        OSError: as :class:`ControlClient`.
        ControlError: as :func:`find_path`.
    """
    return ControlClient(args.control or find_path(args.service))


def command(
    add: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, ControlClient], int],
) -> Command:
    """A command with the options that all have, and their way to fail."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.epilog = parser.epilog or _CODES
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "-s", "--service", metavar="NAME", help="the service; needed if several run"
        )
        which.add_argument(
            "--control", metavar="PATH", help="its control socket, if it is not at the usual place"
        )
        add(parser)

    def main(args: argparse.Namespace) -> int:
        if args.command:
            raise ValueError("nothing follows --")
        try:
            connection = client(args)
        except ControlError as error:
            raise ValueError(str(error)) from None
        try:
            with connection:
                return run(args, connection)
        except ControlError as error:
            print(f"pyforkfd {args.name}: {error}", file=sys.stderr)
            return 1

    return Command(add_arguments, main)


def _nothing(parser: argparse.ArgumentParser) -> None:
    """It has no arguments of its own."""


def _components(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "components", nargs="*", metavar="COMPONENT", help="these alone; none: all of them"
    )


def _reload(args: argparse.Namespace, to: ControlClient) -> int:
    answer = to.request("reload", timeout=None, components=args.components)
    print(f"generation {answer['generation']} serves")
    return 0


def _rollback(args: argparse.Namespace, to: ControlClient) -> int:
    answer = to.request("rollback", timeout=None)
    print(f"generation {answer['generation']} serves again")
    return 0


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("component", metavar="COMPONENT")
    parser.add_argument("count", type=int, metavar="N", help="how many workers are to be ready")


def _scale(args: argparse.Namespace, to: ControlClient) -> int:
    to.request("scale", component=args.component, count=args.count)
    return 0


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="kill the workers, whatever they have begun"
    )


def _stop(args: argparse.Namespace, to: ControlClient) -> int:
    to.request("stop", timeout=None, now=args.now)
    return 0


def _add_restart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", nargs="+", type=int, metavar="WORKER", help="its id")


def _restart(args: argparse.Namespace, to: ControlClient) -> int:
    for worker in args.workers:
        to.request("restart", worker=worker)
    return 0


def _add_signal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("component", metavar="COMPONENT")
    parser.add_argument("signal", metavar="SIGNAL", help="USR2, SIGUSR2 or a number")


def _signal(args: argparse.Namespace, to: ControlClient) -> int:
    word = args.signal
    signum = int(word if word.isdecimal() else SIGNAL.read(word))
    answer = to.request("signal", component=args.component, signal=signum)
    print(f"sent to {answer['workers']} workers")
    return 0


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C"
    )
    parser.add_argument(
        "-n", "--lines", type=int, default=100, metavar="N", help="the last N lines (%(default)s)"
    )
    _components(parser)


def _logs(args: argparse.Namespace, to: ControlClient) -> int:
    said = to.stream("logs", components=args.components, lines=args.lines, follow=args.follow)
    for body in said:
        for line in body.get("lines", ()):
            print(line, flush=args.follow)
    return 0


reload = command(_components, _reload)
rollback = command(_nothing, _rollback)
scale = command(_add_scale, _scale)
stop = command(_add_stop, _stop)
restart = command(_add_restart, _restart)
signal = command(_add_signal, _signal)
logs = command(_add_logs, _logs)
