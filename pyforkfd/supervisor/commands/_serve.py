"""The command ``pyforkfd serve``: a service from a file, or from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Sequence

from pyforkfd.supervisor._supervisor import Supervisor
from pyforkfd.supervisor.control._path import default_path
from pyforkfd.supervisor.spec._spec import (
    Component,
    Listener,
    Metrics,
    Privileges,
    Service,
    SpecError,
    ZygoteSpec,
)
from pyforkfd.supervisor.spec._toml import load
from pyforkfd.supervisor.spec._validate import validate
from pyforkfd.supervisor.succession._succession import inherited_service

_EPILOG = """
pyforkfd serve CONFIG.toml                                      a service from a file
pyforkfd serve --listen tcp://:8000 --workers 4 -- CMD...       a program, as it is
pyforkfd serve --listen tcp://:8000 --function shop.app:serve   a function, by a zygote
pyforkfd serve --check CONFIG.toml                              what is wrong with a file

SIGHUP reloads, SIGTERM and SIGINT stop, a second one or SIGQUIT at once.

exit code: 0 stopped as asked, or nothing is wrong; 1 nothing could be kept running; 2 the
configuration is wrong, or a listener cannot be bound: nothing was started.
"""
_SECTION = "options for a service without a file"
# What argparse would have if nothing was said.
_DEFAULTS: dict[str, object] = {
    "name": None,
    "listen": [],
    "workers": None,
    "readiness": None,
    "function": None,
    "preload": [],
    "user": None,
    "shards": False,
    "metrics": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "pyforkfd serve [--control PATH] CONFIG | [options] -- CMD..."
    parser.epilog = _EPILOG
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a TOML file")
    parser.add_argument("--check", action="store_true", help="say all that is wrong with CONFIG")
    parser.add_argument(
        "--control", metavar="PATH", help="of the control socket; none: of the service's name"
    )
    line = parser.add_argument_group(_SECTION)
    line.add_argument("--name", help="of the service; else that of the program")
    line.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="[NAME=]ADDRESS",
        help="tcp://host:port, unix:/path, udp://..., systemd:NAME; may be repeated",
    )
    line.add_argument("--workers", type=int, metavar="N", help="how many (1)")
    line.add_argument(
        "--readiness",
        choices=("notify", "accept", "started"),
        help="how one sees that a worker is ready (accept with --listen, else started)",
    )
    line.add_argument("--function", metavar="PKG.MOD:FN", help="instead of CMD")
    line.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="imported once, before workers are made of it; may be repeated",
    )
    line.add_argument("--shards", action="store_true", help="a socket for each worker: REUSEPORT")
    line.add_argument("--user", help="whom the workers run as")
    line.add_argument("--metrics", metavar="ADDRESS", help="of an endpoint for Prometheus")


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    try:
        return _main(args)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    if args.config is not None:
        said = [f"--{name}" for name, value in _DEFAULTS.items() if getattr(args, name) != value]
        if said or args.command:
            what = ", ".join(said) or "a command"
            raise ValueError(f"CONFIG says it all: {what} cannot be given as well")
    elif args.check:
        raise ValueError("--check is for a CONFIG")
    if args.check:
        service = load(args.config)
        print(f"{args.config}: nothing is wrong with service {service.name}")
        return 0
    if args.config is None:
        service, read = from_arguments(args), None
    else:
        # What a predecessor has run, if there is one: the file may be broken by now.
        service = inherited_service() or load(args.config)
        # The file's directory may be left by then.
        read = functools.partial(_read, os.path.abspath(args.config), args.control)
    if not service.log.stdout:
        _log_to_stderr()
    return Supervisor(_with_control(service, args.control), read_again=read).run()


def _read(path: str, control: str | None) -> Service:
    return _with_control(load(path), control)


def from_arguments(args: argparse.Namespace) -> Service:
    """A service of one component, as the options have it.

    Raises:
        ValueError: the options do not go together.
        SpecError: what they say makes no sense.
    """
    command: list[str] = args.command
    if bool(command) == bool(args.function):
        raise ValueError("say what to run: CONFIG, or -- CMD..., or --function PKG.MOD:FN")
    if args.preload and not args.function:
        raise ValueError("--preload is for --function")
    name = args.name or _name_of(command, args.function)
    listeners = _listeners(args.listen, shards=args.shards)
    zygote = ZygoteSpec(name=name, preload=tuple(args.preload)) if args.function else None
    component = Component(
        name=name,
        command=tuple(command) or None,
        function=args.function,
        zygote=None if zygote is None else zygote.name,
        workers=1 if args.workers is None else args.workers,
        listen=tuple(listeners),
        readiness=args.readiness or ("accept" if listeners else "started"),
        privileges=Privileges(user=args.user),
    )
    service = Service(
        name=name,
        components={name: component},
        listeners=listeners,
        zygotes={} if zygote is None else {zygote.name: zygote},
        metrics=Metrics(address=args.metrics),
    )
    if problems := validate(service):
        raise SpecError(tuple(problems))
    return service


def _name_of(command: Sequence[str], function: str | None) -> str:
    word = os.path.basename(command[0]) if function is None else function.partition(":")[0]
    return re.sub(r"[^A-Za-z0-9_.@-]|^[.@-]+", "", word)[:64] or "service"


def _listeners(texts: Sequence[str], *, shards: bool) -> dict[str, Listener]:
    found: dict[str, Listener] = {}
    for text in texts:
        match = re.fullmatch(r"(?:([^:/=]+)=)?(.*)", text, re.DOTALL)
        assert match is not None, "everything matches"
        name = match[1] or ("main" if not found else f"main-{len(found) + 1}")
        if name in found:
            raise ValueError(f"--listen: two are called {name}")
        found[name] = Listener(name=name, address=match[2], shards=shards)
    return found


def _with_control(service: Service, path: str | None) -> Service:
    """With a control socket: the commands are to find the service."""
    if path is None and service.control.path is not None:
        return service
    control = dataclasses.replace(service.control, path=path or default_path(service.name))
    return dataclasses.replace(service, control=control)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    layout = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s"
    formatter = logging.Formatter(layout, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("pyforkfd")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
