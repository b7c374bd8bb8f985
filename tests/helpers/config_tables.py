"""The tables of docs/supervisor-config.md, from the dataclasses; run as a script to update them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import signal
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pyforkfd.supervisor.spec import _reader as _read
from pyforkfd.supervisor.spec import _spec

PAGE = Path(__file__).parents[2] / "docs/supervisor-config.md"
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORDS = {bool: "boolean", int: "integer", float: "number", str: "string", Any: "anything"}


def described(kind: type) -> dict[str, str]:
    text = inspect.getdoc(kind) or ""
    attributes = text.partition("Attributes:\n")[2].partition("\nRaises:\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.M)
    return {name: plain(words) for name, words in found}


def plain(words: str) -> str:
    words = re.sub(r":func:`([^`]+)`", r"`\1`", re.sub(r"\s+", " ", words).replace("``", "`"))
    return re.sub(r"\bNone\b", "none", words).replace("|", "\\|")


def words(wanted: Any) -> str:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        unit = {"seconds": "duration", "bytes": "size", "signal": "signal", "limit": "limit"}
        return unit[arguments[1]]
    if origin is Literal:
        return " or ".join(f'`"{a}"`' for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(words(a) for a in arguments if a is not type(None))
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return f"array of {len(arguments)}"
        inner = words(arguments[0])
        if arguments[0] is Any:
            return "array"
        return f"array of ({inner})" if " " in inner else f"array of {inner}s"
    if dataclasses.is_dataclass(wanted) or origin is not None:
        return "table"
    return WORDS[wanted]


def default(field: dataclasses.Field[Any], wanted: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "empty"
    value = field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value):
        return "its own"
    if isinstance(value, signal.Signals):
        return f'`"{value.name}"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if field.name == "mode":
        return f"`{value:#o}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"


def table(kind: type) -> str:
    meanings, annotations = described(kind), _read.fields_of(kind)
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(kind):
        if field.name == "name" and kind is not _spec.Service:
            continue  # the key of the table
        about = meanings[field.name]
        kind_of = words(annotations[field.name])
        lines.append(f"| `{field.name}` | {kind_of} | {default(field, annotations)} | {about} |")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    return MARK.sub(lambda m: m[1] + "\n" + table(getattr(_spec, m[2])) + "\n" + m[3], page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
    sys.stdout.write(f"{PAGE} is up to date\n")
