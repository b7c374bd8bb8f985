"""The command ``pyforkfd status``: prints the state of a service once, or every second."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from typing import Any

from pyforkfd._tables import Table, plain, printable
from pyforkfd.supervisor.control._client import ControlClient

from ._commands import command

_EPILOG = """
condition: ready; starting (some worker was never ready yet); reloading; degraded (the reasons
follow); stopping.

exit code: 0 ready or reloading; 1 any other condition; 2 bad usage, or no such service runs.
"""
_STYLES = {"ready": "green", "reloading": "cyan", "starting": "cyan"}
_HEALTHY = ("ready", "reloading")
_DUMB = ("dumb", "unknown")  # terminals without a cursor to move: rich draws nothing on them


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    form.add_argument("--watch", action="store_true", help="print every second, until Ctrl-C")


def _print_status(args: argparse.Namespace, service: ControlClient) -> int:
    if args.watch:
        _watch(service)
        return 0
    state = service.request("status")["status"]
    print(json.dumps(state) if args.json else as_text(state, _width()))
    return 0 if state["condition"] in _HEALTHY else 1


def _watch(service: ControlClient) -> None:
    screen = _is_terminal() and os.environ.get("TERM", "").lower() not in _DUMB
    if screen:
        try:
            import rich.live
        except ImportError:
            pass
        else:
            with rich.live.Live(auto_refresh=False) as live:
                while True:
                    live.update(_as_rich(service.request("status")["status"]), refresh=True)
                    time.sleep(1)
    clear = "\x1b[H\x1b[2J" if screen else ""
    while True:
        print(clear + as_text(service.request("status")["status"], _width()), flush=True)
        time.sleep(1)


def _width() -> int | None:
    return shutil.get_terminal_size().columns if _is_terminal() else None


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def as_text(state: dict[str, Any], width: int | None = None) -> str:
    """Format a state as lines for people.

    Args:
        state: the values that :func:`describe` returns it.
        width: columns of the terminal; None: as wide as it takes.
    """
    head = [_headline(state), *(f"  {printable(reason)}" for reason in state["reasons"])]
    return "\n".join([*head, "", *(plain(table, width=width) + "\n" for table in tables(state))])


def tables(state: dict[str, Any]) -> list[Table]:
    """Return a table of the components, and one of their workers.

    What workers have sent is escaped: a terminal would obey it.
    """
    components = [
        (
            one["name"],
            f"{one['ready']}/{one['wanted']}",
            _or_dash(one["generation"]),
            str(one["crashes"]),
            _death(one["last_death"]),
        )
        for one in state["components"]
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
            printable(worker["status"] or "") or _death(worker["last_death"]),
        )
        for one in state["components"]
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
    """Format a duration in its two largest units: "3m20s"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def _headline(state: dict[str, Any]) -> str:
    more = ""
    if state["rollback"] is not None:
        more = f", rollback possible for {span(state['rollback'])}"
    return (
        f"{state['service']}: {state['condition']} (pid {state['pid']}, up {span(state['age'])}, "
        f"generation {state['generation']}{more})"
    )


def _death(death: dict[str, Any] | None) -> str:
    if death is None:
        return "-"
    detail = printable(death["detail"])
    return f"worker {death['worker']}: {death['cause']}, {detail}, {span(death['ago'])} ago"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _as_rich(state: dict[str, Any]) -> Any:
    import rich.console
    import rich.table
    import rich.text

    style = _STYLES.get(state["condition"], "bold red")
    lines: list[Any] = [rich.text.Text(_headline(state), style=style)]
    lines.extend(rich.text.Text(f"  {printable(reason)}") for reason in state["reasons"])
    for table in tables(state):
        rich_table = rich.table.Table(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            rich_table.add_row(*map(rich.text.Text, row))
        lines.append(rich_table)
    return rich.console.Group(*lines)


status = command(_add_arguments, _print_status)
