"""The tables of docs/supervisor-config.md, from the dataclasses; run as a script to update them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import signal
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pyforkfd.supervisor.spec import _spec
from pyforkfd.supervisor.spec._reader import fields_of, metadata_of
from pyforkfd.supervisor.spec._units import MODE, SIZE

PAGE = Path(__file__).parents[2] / "docs/supervisor-config.md"
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORDS = {bool: "boolean", int: "integer", float: "number", str: "string", Any: "anything"}


def described(kind: type) -> dict[str, tuple[str, str]]:
    """Map the names of a class's docstring to their values in parentheses and their meaning."""
    text = inspect.getdoc(kind) or ""
    attributes = text.partition("Attributes:\n")[2].partition("\nRaises:\n")[0]
    found = re.findall(r"^    (\w+) (.*(?:\n        .*)*)", attributes, re.M)
    parts = {name: re.sub(r"\s+", " ", entry).partition("): ") for name, entry in found}
    return {name: (f"{value})", meaning) for name, (value, _, meaning) in parts.items()}


def plain(words: str) -> str:
    words = re.sub(r":func:`([^`]+)`", r"`\1`", words.replace("``", "`"))
    return re.sub(r"\bNone\b", "none", words).replace("|", "\\|")


class Page:
    """Words of the page."""

    array, table, nothing, true, false = "array", "table", "none", "true", "false"

    @staticmethod
    def code(value: str) -> str:
        return f"`{value}`"

    @staticmethod
    def unit(unit: Any) -> str:
        return str(unit.name.removeprefix("a "))

    @staticmethod
    def listed(choices: list[str]) -> str:
        return " or ".join(choices)


class Docstring(Page):
    """Words of a docstring."""

    array, table, nothing, true, false = "tuple", "mapping", "None", "True", "False"

    @staticmethod
    def code(value: str) -> str:
        return value

    @staticmethod
    def unit(unit: Any) -> str:
        return str(unit.plain.removeprefix("a "))

    @staticmethod
    def listed(choices: list[str]) -> str:
        return ", ".join(choices[:-1]) + f" or {choices[-1]}"


def words(wanted: Any, to: type[Page] = Page) -> str:
    """Describe an annotation's values, with unit and bounds."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        unit, bounds = metadata_of(wanted)
        name = WORDS[arguments[0]] if unit is None else to.unit(unit)
        if bounds is None:
            return name
        return f"{name}, {bounds.text() if unit is None else bounds.text(unit.show)}"
    if origin is Literal:
        return to.listed([to.code(f'"{a}"') for a in arguments])
    if origin in (Union, types.UnionType):
        return " or ".join(words(a, to) for a in arguments if a is not type(None))
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return f"{to.array} of {len(arguments)}"
        return to.array if arguments[0] is Any else f"{to.array} of {several(arguments[0], to)}"
    if dataclasses.is_dataclass(wanted):
        return to.table if to is Page else cast(type, wanted).__name__
    if origin is not None:
        return to.table if arguments[1] is Any else f"{to.table} of {several(arguments[1], to)}"
    return WORDS[wanted]


def several(wanted: Any, to: type[Page]) -> str:
    """Describe the elements of an array or table."""
    if wanted in (str, int):
        return f"{words(wanted, to)}s"
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(several(a, to) for a in get_args(wanted))
    return "tables" if dataclasses.is_dataclass(wanted) and to is Page else words(wanted, to)


def default(field: dataclasses.Field[Any], wanted: Any, to: type[Page] = Page) -> str:
    """Describe a field's default."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        return "empty"
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return to.nothing
    if dataclasses.is_dataclass(value):
        return "its own" if to is Page else f"{type(value).__name__}()"
    if isinstance(value, bool):
        return to.code(to.true if value else to.false)
    if isinstance(value, tuple):
        return to.code(f"{list(value)}" if to is Page else ", ".join(value) or "()")
    if isinstance(value, str):
        return to.code(f'"{value}"')
    if isinstance(value, signal.Signals):
        return to.code(f'"{value.name}"' if to is Page else value.name)
    unit = metadata_of(wanted)[0]
    if unit is SIZE:
        return to.code(f'"{value >> 20}M"' if to is Page else f"{value >> 20}M")
    return to.code(unit.show(value) if unit is MODE else f"{value:g}")


def stated(field: dataclasses.Field[Any], wanted: Any) -> str:
    """Return what the docstring has to have in parentheses behind a field's name."""
    text = default(field, wanted, Docstring)
    return f"({words(wanted, Docstring)}; {'' if text == 'required' else 'default '}{text})"


def table(kind: type) -> str:
    entries, annotations = described(kind), fields_of(kind)
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        if field.name == "name" and kind is not _spec.Service:
            continue  # the key of the table
        wanted, meaning = annotations[field.name], plain(entries[field.name][1])
        lines.append(f"| `{field.name}` | {words(wanted)} | {default(field, wanted)} | {meaning} |")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    return MARK.sub(lambda m: m[1] + "\n" + table(getattr(_spec, m[2])) + "\n" + m[3], page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
    sys.stdout.write(f"{PAGE} is up to date\n")
