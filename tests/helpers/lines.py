"""The lines of FORKFD_DEBUG."""

from __future__ import annotations

import re

_LINE = re.compile(r'forkfd(?P<fields>( [a-z_]+=("(\\.|[^"\\])*"|[a-z_]+|-?[0-9.]+))+)')
_FIELD = re.compile(r' ([a-z_]+)=("(?:\\.|[^"\\])*"|\S+)')
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)")


def parse(line: str) -> dict[str, str]:
    """Return name -> value; the line must be whole, and have the fields of every line."""
    found = _LINE.fullmatch(line)
    assert found, line
    fields = {name: _plain(value) for name, value in _FIELD.findall(found["fields"])}
    assert list(fields)[:5] == ["t", "pid", "tid", "event", "stage"], line
    return fields


def parse_all(text: str, event: str | None = None) -> list[dict[str, str]]:
    lines = [parse(line) for line in text.splitlines()]
    return [line for line in lines if event in (None, line["event"])]


def _plain(value: str) -> str:
    if not value.startswith('"'):
        return value
    return _ESCAPE.sub(
        lambda found: chr(int(found[1][1:], 16)) if len(found[1]) > 1 else found[1], value[1:-1]
    )
