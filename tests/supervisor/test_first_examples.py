"""The services of docs/supervisor-config.md become ready as they stand."""

from __future__ import annotations

import os
import re
import sys
import urllib.request
from pathlib import Path

import pytest
from services import PATIENCE, free_port
from supervised import Supervised

pytest.importorskip("uvicorn")
PAGE = Path(__file__).parents[2] / "docs/supervisor-config.md"
APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""


def examples() -> list[str]:
    """The part of each service that needs no user, no /run and no second port."""
    found = re.findall(r"^```toml\n(name = .*?)^```", PAGE.read_text(), re.M | re.S)
    return [
        re.sub(r"^\[listeners\.keys\]\n.*?\n\n", "", text, flags=re.M | re.S).partition(
            "[components.keys]"
        )[0]
        for text in found
    ]


@pytest.mark.parametrize("index", range(2))
def test_an_example_of_the_page_becomes_ready(index: int, tmp_path: Path) -> None:
    text, port = examples()[index], free_port()
    text, count = re.subn(r'"tcp://[^"]*:8080"', f'"tcp://127.0.0.1:{port}"', text)
    assert count == 1
    (tmp_path / "shop.py").write_text(APP)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "PYTHONPATH": str(tmp_path)}
    with Supervised(tmp_path, text, env=env) as service:
        service.until("^ready: web 4/4")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
            assert answer.read() == b"ok"
