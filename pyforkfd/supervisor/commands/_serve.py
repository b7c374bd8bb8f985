"""The command ``pyforkfd serve``: runs a service from a file, or from options."""

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

from pyforkfd._tables import printable
from pyforkfd._trusted_files import who_may_change
from pyforkfd.supervisor._supervisor import Supervisor
from pyforkfd.supervisor.control._path import default_path
from pyforkfd.supervisor.metrics._prometheus import MetricsUnavailableError
from pyforkfd.supervisor.spec._capacity import capacity
from pyforkfd.supervisor.spec._problems import Problem
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
pyforkfd serve --listen tcp://:8000 --workers 4 -- CMD...       an unmodified program
pyforkfd serve --listen tcp://:8000 --function shop.app:serve   a function, in clones of a zygote
pyforkfd serve --check CONFIG.toml                              check a file, start nothing

SIGHUP reloads.  SIGTERM and SIGINT stop when the workers' requests are done; a second one and
SIGQUIT stop at once.

exit code: 0 stopped on request, or the file has no problem; 1 no component could be started; 2 the
configuration is wrong, or a listener cannot be bound: nothing was started.
"""

log = logging.getLogger("pyforkfd.supervisor")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "pyforkfd serve [--control PATH] CONFIG | [options] -- CMD..."
    parser.epilog = _EPILOG
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file with the service")
    parser.add_argument(
        "--check", action="store_true", help="print every problem of CONFIG, start nothing"
    )
    parser.add_argument(
        "--control", metavar="PATH", help="path of the control socket (by the service's name)"
    )
    group = parser.add_argument_group("options for a service without a file")
    options = [
        # Not "name": that is the command's.
        group.add_argument(
            "--name",
            dest="service_name",
            metavar="NAME",
            help="name of the service (the program's)",
        ),
        group.add_argument(
            "--listen",
            action="append",
            default=[],
            metavar="[NAME=]ADDRESS",
            help="tcp://host:port, unix:/path, udp://..., systemd:NAME; may be repeated",
        ),
        group.add_argument("--workers", type=int, metavar="N", help="number of workers (1)"),
        group.add_argument(
            "--readiness",
            choices=("notify", "accept", "started"),
            help="sign that a worker is ready (accept with --listen, else started)",
        ),
        group.add_argument("--function", metavar="PKG.MOD:FN", help="function, instead of CMD"),
        group.add_argument(
            "--preload",
            action="append",
            default=[],
            metavar="MODULE",
            help="module that the zygote imports before it is cloned; may be repeated",
        ),
        group.add_argument(
            "--app-dir",
            metavar="DIR",
            help="directory to import --function and --preload from (the current one)",
        ),
        group.add_argument(
            "--shards", action="store_true", help="a socket for each worker (SO_REUSEPORT)"
        ),
        group.add_argument("--user", help="user of the workers (the supervisor's)"),
        group.add_argument(
            "--capabilities",
            metavar="NAME,NAME",
            action="append",
            help="all capabilities of the workers, such as SETUID,SETGID, or none "
            "(NET_BIND_SERVICE with --listen, else none); may be repeated",
        ),
        group.add_argument(
            "--metrics", metavar="ADDRESS", help="address of the endpoint for Prometheus"
        ),
    ]
    parser.set_defaults(without_file=options)


def main(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    try:
        return _main(args)
    except SpecError as error:
        _complain(str(error))
        return 2
    except MetricsUnavailableError as error:
        _complain(f"pyforkfd serve: {error}")
        return 2


def _complain(text: str) -> None:
    """Print to standard error: texts quote the configuration."""
    print(printable(text, "\n\t"), file=sys.stderr)


def _main(args: argparse.Namespace) -> int:
    _check_usage(args)
    if args.check:
        return _check(args.config, args.control)
    if args.config is None:
        service, read_again = from_arguments(args), None
    else:
        # A predecessor's service, if there is one: the file may be broken by now.
        service = inherited_service() or load(args.config)
        # A later reload may find another working directory.
        read_again = functools.partial(_read, os.path.abspath(args.config), args.control)
    if not service.log.stdout:
        _log_to_stderr()
    supervisor = Supervisor(_with_control(service, args.control), read_again=read_again)
    if args.config is not None:
        supervisor._on_start = functools.partial(_warn_of_writers, os.path.abspath(args.config))
    return supervisor.run()


def _writers(path: str) -> str:
    """Return a warning of those who may change a configuration; empty: nobody else may."""
    found = who_may_change(path)
    return f"{found}; what it says is done with this supervisor's privileges" if found else ""


def _warn_of_writers(path: str) -> None:
    if text := _writers(path):
        log.warning("configuration: %s", text)


def _check(path: str, control: str | None) -> int:
    """Print every problem of a file, and of the machine for its service; start nothing.

    Raises:
        SpecError: there are problems.
    """
    from ._check import Check  # whoever serves does not load it

    check = Check(control)
    if text := _writers(os.path.abspath(path)):
        check.warnings.append(Problem(place=(), text=text))
    try:
        service = load(path, examine=check)
    finally:
        for warning in check.warnings:
            _complain(f"{path}: warning: {warning}")
    _complain(f"{path}: {capacity(service)}")
    print(f"{path}: service {service.name} has no problem")
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if args.config is None:
        if args.check:
            raise ValueError("--check needs a CONFIG")
        return
    given = [
        option.option_strings[0]
        for option in args.without_file
        if getattr(args, option.dest) != option.default
    ]
    if args.command:
        given.append("a command")
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be given beside CONFIG; write it into the file"
        )


def _read(path: str, control: str | None) -> Service:
    """Read the configuration for a reload."""
    _warn_of_writers(path)
    return _with_control(load(path), control)


def from_arguments(args: argparse.Namespace) -> Service:
    """Return a service of one component from the options.

    Args:
        args: parsed arguments.

    Raises:
        ValueError: the options do not go together.
        SpecError: the service is wrong.
    """
    command: list[str] = args.command
    if bool(command) == bool(args.function):
        raise ValueError(
            "nothing to run, or two things; write CONFIG, or -- CMD..., or --function PKG.MOD:FN"
        )
    if args.preload and not args.function:
        raise ValueError("--preload needs --function")
    if args.app_dir is not None and not args.function:
        raise ValueError("--app-dir needs --function")
    name = args.service_name or _default_name(command, args.function)
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
        privileges=Privileges(user=args.user, capabilities=_capabilities(args.capabilities)),
    )
    service = Service(
        name=name,
        components={name: component},
        listeners=listeners,
        zygotes={} if zygote is None else {zygote.name: zygote},
        metrics=Metrics(address=args.metrics),
        app_dir=os.path.abspath(args.app_dir or ".") if args.function else None,
    )
    if problems := validate(service):
        raise SpecError(tuple(problems))
    return service


def _capabilities(lists: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return all names of the option's lists; None where it is not given."""
    if lists is None:
        return None
    words = [word for text in lists for word in text.replace(",", " ").split()]
    return tuple(word for word in words if word != "none")


def _default_name(command: Sequence[str], function: str | None) -> str:
    word = os.path.basename(command[0]) if function is None else function.partition(":")[0]
    return re.sub(r"[^A-Za-z0-9_.@-]|^[.@-]+", "", word)[:64] or "service"


def _listeners(texts: Sequence[str], *, shards: bool) -> dict[str, Listener]:
    found: dict[str, Listener] = {}
    for text in texts:
        match = re.fullmatch(r"(?:([^:/=]+)=)?(.*)", text, re.DOTALL)
        assert match is not None, "everything matches"
        name = match[1] or ("main" if not found else f"main-{len(found) + 1}")
        if name in found:
            raise ValueError(f"--listen: two listeners have the name {name}; write NAME=ADDRESS")
        found[name] = Listener(name=name, address=match[2], shards=shards)
    return found


def _with_control(service: Service, path: str | None) -> Service:
    """Return the service with a control socket, by which the commands find it."""
    if path is None and service.control.path is not None:
        return service
    control = dataclasses.replace(service.control, path=path or default_path(service.name))
    return dataclasses.replace(service, control=control)


class _Formatter(logging.Formatter):
    """Escapes what a terminal would obey: messages quote workers."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), "\n\t")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    layout = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s"
    formatter = _Formatter(layout, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("pyforkfd")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
