"""Functions by name: what is found, and the error for each way in which a name is wrong."""

from __future__ import annotations

import os.path
from pathlib import Path

import pytest

from pyforkfd._entry_points import check_entry_point, find, is_entry_point, resolve


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules: shop, shop.broken, shop.needs_more and shop.needs_sibling."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("number = 3\nclass Desk:\n    def open(): return 'open'\n")
    (package / "broken.py").write_text("raise RuntimeError('broken on purpose')\n")
    (package / "needs_more.py").write_text("import no_such_library.part\n")
    (package / "needs_sibling.py").write_text("from . import no_such_sibling\n")
    (package / "needs_own.py").write_text("import shop.no_such_sibling\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_found(shop: None) -> None:
    assert resolve("os.path:join") is os.path.join
    assert resolve("shop:Desk.open")() == "open"
    assert find("shop:number") == 3
    assert find("os.path") is os.path


@pytest.mark.parametrize(
    "text", ["", ":", "shop", "shop:", ":serve", "shop.:serve", "a b:serve", "shop:a.", "shop:a:b"]
)
def test_form(text: str) -> None:
    assert not is_entry_point(text)
    for check in (resolve, lambda text: check_entry_point(text, "setup")):
        with pytest.raises(ValueError, match=r"is not 'package\.module:function'"):
            check(text)
    with pytest.raises(ValueError, match=r"^setup: "):
        check_entry_point(text, "setup")


def test_nothing_is_imported_by_a_check() -> None:
    assert is_entry_point("no_such_module.part:serve.this")
    check_entry_point("no_such_module:serve", "setup")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("no_such_module:serve", ImportError, "there is no module 'no_such_module'"),
        ("no_such_package.part:serve", ImportError, "there is no module 'no_such_package'"),
        ("shop.no_such_part:serve", ImportError, r"there is no module 'shop\.no_such_part'"),
        ("os.path.part:serve", ImportError, r"there is no module 'os\.path\.part'"),
        (
            "shop.needs_more:serve",
            ImportError,
            r"module 'shop\.needs_more' imports 'no_such_library', and there is no such module",
        ),
        (
            "shop.needs_own:serve",
            ImportError,
            r"module 'shop\.needs_own' imports 'shop\.no_such_sibling', and there is no such",
        ),
        ("shop.needs_sibling:serve", ImportError, "cannot import name 'no_such_sibling'"),
        ("shop.broken:serve", RuntimeError, "broken on purpose"),
        ("shop:serve", AttributeError, "module 'shop' has no attribute 'serve'"),
        ("shop:Desk.close", AttributeError, r"module 'shop' has no attribute 'Desk\.close'"),
        ("shop:number", TypeError, "'shop:number' is of type 'int', which cannot be called"),
    ],
)
def test_errors(shop: None, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(text)
