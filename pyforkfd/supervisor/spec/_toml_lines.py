"""The line of every key of a TOML document, which tomllib does not report."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

from ._problems import Place

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_LITERAL = re.compile(r"'[^'\n]*'")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
# Up to two quotation marks may stand right before the closing three.
_LONG_LITERAL = re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL)
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL)


def locate(text: str) -> Mapping[Place, int]:
    """Find the line of every key, table, element of an array and element of those.

    Args:
        text: a document that tomllib accepts; the lines of others mean nothing.

    Returns:
        Path of keys and indexes -> line, from 1; of a table that is only implied, the first
        line that implies it.
    """
    return _Locator(text).lines


def line_of(lines: Mapping[Place, int], place: Place) -> int | None:
    """Return the line of a place, or of the innermost written table or key around it."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return None


class _Locator:
    """A scanner of a document; ``lines`` is complete when it is constructed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Place, int] = {}
        self._line = 1
        self._counted = 0  # characters whose newlines are in _line
        self._last: dict[Place, int] = {}  # array of tables -> its last index
        table: Place = ()
        while self._skip(_BLANK) < len(text):
            if text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else len(self.text)
        return self.at

    def _now(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def _header(self) -> Place:
        line = self._now()
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        keys = self._key()
        self.at += brackets
        place: Place = ()
        for key in keys[:-1]:
            place = (*place, key)
            self.lines.setdefault(place, line)
            if place in self._last:  # a table of the last element
                place = (*place, self._last[place])
        place = (*place, keys[-1])
        if brackets == 2:
            self.lines.setdefault(place, line)
            self._last[place] = self._last.get(place, -1) + 1
            place = (*place, self._last[place])
        self.lines[place] = line
        return place

    def _pair(self, table: Place) -> None:
        line = self._now()
        place = table
        for key in self._key():
            place = (*place, key)
            self.lines.setdefault(place, line)
        self.at += 1  # the =
        self._skip(_SPACE)
        self._value(place)

    def _key(self) -> list[str]:
        """Scan a dotted key up to the = or ] behind it."""
        keys = []
        while True:
            self._skip(_SPACE)
            begin = self.at
            if self.text.startswith('"', begin):
                self._skip(_BASIC)
                keys.append(next(iter(tomllib.loads(self.text[begin : self.at] + " = 0"))))
            elif self.text.startswith("'", begin):
                self._skip(_LITERAL)
                keys.append(self.text[begin + 1 : self.at - 1])
            else:
                self._skip(_BARE_KEY)
                keys.append(self.text[begin : self.at])
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return keys
            self.at += 1

    def _value(self, place: Place) -> None:
        here = self.text[self.at : self.at + 3]
        if here[:1] == "[":
            self._array(place)
        elif here[:1] == "{":
            self._inline_table(place)
        elif here == '"""':
            self._skip(_LONG_BASIC)
        elif here == "'''":
            self._skip(_LONG_LITERAL)
        elif here[:1] == '"':
            self._skip(_BASIC)
        elif here[:1] == "'":
            self._skip(_LITERAL)
        else:
            self._skip(_SCALAR)

    def _array(self, place: Place) -> None:
        self.at += 1
        index = 0
        while self._skip(_BLANK) < len(self.text) and self.text[self.at] != "]":
            self.lines[(*place, index)] = self._now()
            self._value((*place, index))
            index += 1
            self._skip(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1
        self.at += 1

    def _inline_table(self, place: Place) -> None:
        self.at += 1
        while self._skip(_BLANK) < len(self.text) and self.text[self.at] != "}":
            self._pair(place)
            self._skip(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1
        self.at += 1
