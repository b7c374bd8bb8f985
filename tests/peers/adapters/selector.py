"""Our selector in place of the standard epoll selector, which asyncio takes by default too."""

import selectors
from typing import Any

import pyforkfd as ff

waits = 0


class EpollSelector(ff.ForkSafeSelector):
    _selector_cls: Any = None  # test_modify_unregister puts a mock here whose modify() raises

    def __init__(self) -> None:
        super().__init__()
        if self._selector_cls is not None:
            self._set.close()
            self._set = self._selector_cls()
            self._add = lambda fd, events, /: None
            self._drop = lambda fd, /: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        global waits
        waits += 1
        return super().select(timeout)


selectors.EpollSelector = selectors.DefaultSelector = EpollSelector  # type: ignore[misc, assignment]


def calls() -> int:
    return waits
