"""Zygotes that have imported zygote_jobs, without and with idle workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyforkfd.zygote import Zygote


@pytest.fixture(scope="module")
def cold() -> Iterator[Zygote]:
    """A zygote without idle workers."""
    with Zygote(preload=["zygote_jobs"]) as zygote:
        zygote.start()
        yield zygote


@pytest.fixture(params=["cold", "warm"])
def zygote(request: pytest.FixtureRequest, cold: Zygote) -> Iterator[Zygote]:
    """A zygote for all tests; or, with idle workers, which are used up, for each test its own."""
    if request.param == "cold":
        yield cold
        return
    with Zygote(preload=["zygote_jobs"], warm=2) as zygote:
        zygote.start()
        yield zygote
