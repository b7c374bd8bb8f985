"""The last lines of a worker, as a reload's answer has them."""

from __future__ import annotations

import json

from pyforkfd.supervisor.logs._excerpt import excerpt


def entry(message: str, exception: str = "") -> bytes:
    return json.dumps({"message": message, "exception": exception}).encode()


def test_the_last_ten_lines_in_their_order() -> None:
    entries = [entry(f"line {i}") for i in range(20)]
    assert excerpt(entries) == [f"line {i}" for i in range(10, 20)]
    assert excerpt([entry("failed", "Traceback:\\n  a\\nValueError".replace("\\n", "\n"))]) == [
        *("failed", "Traceback:", "  a", "ValueError")
    ]
    assert excerpt([]) == []


def test_two_kibibytes() -> None:
    found = excerpt([entry("x" * 1000) for _ in range(5)])
    assert found == ["x" * 1000] * 2
    (long,) = excerpt([entry("before"), entry("\u00e4" * 5000)])
    assert set(long) == {"\u00e4"} and 2000 < len(long.encode()) <= 2048


def test_nothing_that_a_terminal_obeys() -> None:
    assert excerpt([entry("\x1b[2Ja\x9bb\tc\r")]) == ["\\x1b[2Ja\\x9bb\tc"]
