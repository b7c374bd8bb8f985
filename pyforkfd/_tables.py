"""Tables for people: drawn by rich on a terminal, where it is installed; else aligned text."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_GAP = "  "
_MIN_WIDTH = 12  # characters; no column is made narrower
_STYLES = {
    "confirmed": "green",
    "contradicted": "bold red",
    "unproven": "bold red",
    "impossible": "yellow",
    "yes": "green",
    "no": "yellow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, the names of the columns, and rows with as many cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def printable(text: str, keep: str = "") -> str:
    """Escape what is not printable: a terminal would obey it, and a table lose its lines.

    Args:
        text: any, such as what a worker has sent.
        keep: characters that stay as they are, such as newlines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def show(table: Table) -> None:
    """Print a table to standard output."""
    if sys.stdout is None or not sys.stdout.isatty():
        print(plain(table), end="\n\n")
        return
    try:
        import rich.console
        import rich.table
        import rich.text
    except ImportError:
        width = shutil.get_terminal_size().columns
        print(plain(table, width=width), end="\n\n")
        return
    drawn = rich.table.Table(title=table.title, title_justify="left", title_style="bold")
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(rich.text.Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    rich.console.Console().print(drawn)


def plain(table: Table, *, width: int | None = None) -> str:
    """Return a table as aligned text; with a width, cells are wrapped to fit."""
    lines: list[Sequence[str]] = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    while width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = widths.index(max(widths))
        if widths[widest] <= _MIN_WIDTH:
            break
        widths[widest] -= 1
    text = [table.title]
    for line in lines:
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(line, widths, strict=True)]
        for i in range(max(map(len, cells))):
            parts = [
                (cell[i] if i < len(cell) else "").ljust(size)
                for cell, size in zip(cells, widths, strict=True)
            ]
            text.append(_GAP.join(parts).rstrip())
    return "\n".join(text)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a page of documentation."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
