"""The lines of a TOML document: against documents whose lines are known since we wrote them."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyforkfd.supervisor.spec._toml_lines import line_of, locate

KEYS = st.one_of(
    st.from_regex(r"[a-z0-9_-]{1,4}", fullmatch=True),
    st.text(alphabet="a .#=[]\"'\\é\n\t{},", max_size=4),
)
BLANK = st.sampled_from(["", "\n", "# x = 1\n", "   \n\t# [no.table] \"'\n"])
INLINE_BLANK = st.sampled_from(["", " ", "\t"])
TEXTS = st.text(alphabet="a #=[]{}\"'\\,\n", max_size=8)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def written(key: str) -> str:
    bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if bare else quoted(key)


class Document:
    """Text that is written piece by piece, what it means, and where each piece is."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}

    def here(self, *place: str | int) -> None:
        self.lines.setdefault(place, self.text.count("\n") + 1)

    def some(self, strategy: st.SearchStrategy[str]) -> None:
        self.text += self.draw(strategy)

    def keys(self, most: int) -> list[str]:
        return self.draw(st.lists(KEYS, max_size=most, unique=True))

    def value(self, place: tuple[str | int, ...], depth: int, long: bool) -> Any:
        kind = self.draw(st.sampled_from(["scalar", "text", "long", "array", "table"]))
        if kind == "array" and depth:
            return self.array(place, depth, long)
        if kind == "table" and depth:
            return self.inline(place, depth)
        if kind == "long" and long:
            return self.long_text()
        if kind == "text":
            text = self.draw(TEXTS)
            literal = "'" not in text and "\n" not in text and self.draw(st.booleans())
            self.text += f"'{text}'" if literal else quoted(text)
            return text
        scalar = self.draw(st.sampled_from(["1", "-1.5e3", "true", "0o17", "1979-05-27 07:32:00"]))
        self.text += scalar
        return tomllib.loads(f"v = {scalar}")["v"]

    def long_text(self) -> str:
        text = self.draw(TEXTS)
        if self.draw(st.booleans()) and "'''" not in text:
            raw = f"'''\n{text}'''"
        else:
            body = text.replace("\\", "\\\\").replace('"""', '""\\"')
            raw = f'"""\n{body}"""'
        self.text += raw
        try:
            return str(tomllib.loads(f"v = {raw}")["v"])
        except tomllib.TOMLDecodeError:  # quotation marks at the end, more than there may be
            self.text = self.text.removesuffix(raw) + '""'
            return ""

    def array(self, place: tuple[str | int, ...], depth: int, long: bool) -> list[Any]:
        found: list[Any] = []
        blank = BLANK if long else INLINE_BLANK
        count = self.draw(st.integers(0, 3))
        self.text += "["
        for index in range(count):
            self.some(blank)
            self.here(*place, index)
            found.append(self.value((*place, index), depth - 1, long))
            self.some(blank)
            if index + 1 < count or self.draw(st.booleans()):
                self.text += ","
        self.some(blank)
        self.text += "]"
        return found

    def inline(self, place: tuple[str | int, ...], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.text += "{"
        for number, key in enumerate(self.keys(3)):
            self.text += ", " if number else ""
            self.here(*place, key)
            self.text += f"{written(key)} = "
            found[key] = self.value((*place, key), depth - 1, long=False)
        self.text += "}"
        return found

    def pairs(self, place: tuple[str | int, ...], keys: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in keys:
            self.some(BLANK)
            self.here(*place, key)
            self.text += written(key)
            self.some(INLINE_BLANK)
            inner = self.draw(st.none() | KEYS)
            if inner is not None:
                self.text += " . " + written(inner)
                self.here(*place, key, inner)
            self.text += " = "
            path = (*place, key) if inner is None else (*place, key, inner)
            value = self.value(path, 2, long=True)
            found[key] = value if inner is None else {inner: value}
            self.text += self.draw(st.sampled_from(["\n", " # = '\n"]))
        return found

    def table(self, place: tuple[str | int, ...], names: list[str]) -> dict[str, Any]:
        header = ".".join(map(written, names))
        self.here(*place)
        self.text += f"[{header}]\n"
        return self.pairs(place, self.keys(2))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[tuple[str | int, ...], int]]:
    document = Document(draw)
    names = document.keys(6)
    top = draw(st.integers(0, len(names)))
    data = document.pairs((), names[:top])
    for name in names[top:]:
        document.some(BLANK)
        kind = draw(st.sampled_from(["table", "nested", "array"]))
        if kind == "table":
            data[name] = document.table((name,), [name])
        elif kind == "nested":
            document.here(name)
            data[name] = {"k": document.table((name, "k"), [name, "k"])}
        else:
            document.here(name)
            data[name] = []
            for index in range(draw(st.integers(1, 3))):
                document.here(name, index)
                document.text += f"[[{written(name)}]]\n"
                keys = [key for key in document.keys(2) if key != "sub"]
                element = document.pairs((name, index), keys)
                if draw(st.booleans()):
                    element["sub"] = document.table((name, index, "sub"), [name, "sub"])
                data[name].append(element)
    return document.text, data, document.lines


@given(documents())
def test_every_place_has_the_line_where_it_was_written(
    made: tuple[str, dict[str, Any], dict[tuple[str | int, ...], int]],
) -> None:
    text, data, lines = made
    assert tomllib.loads(text) == data
    assert dict(locate(text)) == lines
    assert dict(locate(text.replace("\n", "\r\n"))) == lines


def test_what_documents_rarely_have() -> None:
    text = "\n".join(
        [
            "a = " + '"""',
            r'x = 1 \""" "' + '"""  # one more right before the end',
            r"""b.'c d'."e\u0066" = [ # ]""",
            "  '''",
            "]''',",
            """  { f = 1, g = ["]", '#'] },""",
            "]",
            "[t.u]",
            "[t]",
            "[[t.v]]",
            "[t.v.w]",
            "z = 1",
        ]
    )
    assert tomllib.loads(text)["t"] == {"u": {}, "v": [{"w": {"z": 1}}]}
    lines = locate(text)
    assert lines["a",] == 1
    assert lines["b", "c d", "ef"] == 3
    assert lines["b", "c d", "ef", 0] == 4
    assert lines["b", "c d", "ef", 1, "g", 1] == 6
    assert lines["t",] == 9  # where it is written, not where it is implied
    assert lines["t", "v", 0, "w", "z"] == 12
    assert line_of(lines, ("t", "v", 0, "w", "no", "such")) == 11
    assert line_of(lines, ("no",)) is None
