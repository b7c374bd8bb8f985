"""The command ``pyforkfd status``: once, or live."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from typing import Any

from pyforkfd._tables import Table, plain
from pyforkfd.supervisor.control._client import ControlClient

from ._commands import command

_EPILOG = """
condition: ready; starting, not all were ready yet; reloading; degraded, with the reasons
below; stopping.

exit code: 0 ready or reloading; 1 anything else; 2 bad usage, or nobody to ask.
"""
_STYLES = {"ready": "green", "reloading": "cyan", "starting": "cyan"}
_WELL = ("ready", "reloading")
_DUMB = ("dumb", "unknown")  # terminals without a cursor to move, as rich has it: it draws nothing


def _add(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs: one object")
    form.add_argument("--watch", action="store_true", help="anew every second, until Ctrl-C")


def _status(args: argparse.Namespace, to: ControlClient) -> int:
    if args.watch:
        _watch(to)
        return 0
    found = to.request("status")["status"]
    print(json.dumps(found) if args.json else as_text(found, _width()))
    return 0 if found["condition"] in _WELL else 1


def _watch(to: ControlClient) -> None:
    screen = sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in _DUMB
    if screen:
        try:
            import rich.live
        except ImportError:
            pass
        else:
            with rich.live.Live(auto_refresh=False) as live:
                while True:
                    live.update(_as_rich(to.request("status")["status"]), refresh=True)
                    time.sleep(1)
    clear = "\x1b[H\x1b[2J" if screen else ""
    while True:
        print(clear + as_text(to.request("status")["status"], _width()), flush=True)
        time.sleep(1)


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_text(found: dict[str, Any], width: int | None = None) -> str:
    """What :func:`describe` says, as lines for people."""
    said = [_headline(found), *(f"  {reason}" for reason in found["reasons"])]
    return "\n".join([*said, "", *(plain(table, width=width) + "\n" for table in tables(found))])


def tables(found: dict[str, Any]) -> list[Table]:
    """Components, and their workers."""
    components = [
        (
            one["name"],
            f"{one['ready']}/{one['wanted']}",
            _or_dash(one["generation"]),
            str(one["crashes"]),
            _death(one["last_death"]),
        )
        for one in found["components"]
    ]
    workers = [
        (
            str(worker["id"]),
            one["name"],
            str(worker["position"]),
            _or_dash(worker["pid"]),
            worker["phase"] + (", to be replaced" if worker["retiring"] else ""),
            str(worker["generation"]),
            span(worker["age"]),
            str(worker["restarts"]),
            "-" if worker["beat_age"] is None else span(worker["beat_age"]),
            "-" if worker["memory"] is None else f"{worker['memory'] / 2**20:.0f}M",
            worker["status"] or _death(worker["last_death"]),
        )
        for one in found["components"]
        for worker in one["workers"]
    ]
    return [
        Table(
            title="Components",
            columns=("name", "ready", "generation", "crashes", "last death"),
            rows=components,
        ),
        Table(
            title="Workers",
            columns=(
                *("id", "component", "position", "pid", "phase", "generation", "age", "restarts"),
                *("beat", "memory", "status, or last death there"),
            ),
            rows=workers,
        ),
    ]


def span(seconds: float) -> str:
    """The two largest units: "3m20s"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def _headline(found: dict[str, Any]) -> str:
    more = ""
    if found["rollback"] is not None:
        more = f", rollback possible for {span(found['rollback'])}"
    return (
        f"{found['service']}: {found['condition']} (pid {found['pid']}, up {span(found['age'])}, "
        f"generation {found['generation']}{more})"
    )


def _death(death: dict[str, Any] | None) -> str:
    if death is None:
        return "-"
    return (
        f"worker {death['worker']}: {death['cause']}, {death['detail']}, {span(death['ago'])} ago"
    )


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _as_rich(found: dict[str, Any]) -> Any:
    import rich.console
    import rich.table
    import rich.text

    style = _STYLES.get(found["condition"], "bold red")
    shown: list[Any] = [rich.text.Text(_headline(found), style=style)]
    shown.extend(rich.text.Text(f"  {reason}") for reason in found["reasons"])
    for table in tables(found):
        made = rich.table.Table(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            made.add_row(*map(rich.text.Text, row))
        shown.append(made)
    return rich.console.Group(*shown)


status = command(_add, _status)
