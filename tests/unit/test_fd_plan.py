"""The descriptor plan, run against a model of a descriptor table."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyforkfd._core import plan_fds

FDS = st.integers(0, 12)


def run(steps: list[tuple[str, int, int, int]], table: dict[int, int]) -> dict[int, int]:
    """Execute steps on a table number -> open file; returns what survives exec."""
    scratch: int | None = None
    kept: set[int] = set()
    for kind, source, target, floor in steps:
        if kind == "save":
            assert scratch is None, "two scratch descriptors at once"
            assert floor >= max(table), "the scratch could land on a number in use"
            scratch = table[source]
            continue
        if kind == "dup":
            table[target] = table[source]
        elif kind == "dup_saved":
            assert scratch is not None
            table[target], scratch = scratch, None
        else:
            assert kind == "keep" and source == target
        kept.add(target)
    assert scratch is None
    return {fd: table[fd] for fd in kept}


@given(st.dictionaries(FDS, FDS))
@example({0: 1, 1: 0})
@example({0: 1, 1: 2, 2: 0, 5: 0})
@example({0: 0, 1: 0})
def test_plan_gives_exactly_the_wanted_map(wanted: dict[int, int]) -> None:
    used = set(wanted) | set(wanted.values())
    table = {fd: 100 + fd for fd in used}  # open file 100+n is at number n
    assert run(plan_fds(wanted), dict(table)) == {t: 100 + s for t, s in wanted.items()}


def test_negative_descriptor_is_named() -> None:
    with pytest.raises(ValueError, match=r"negative descriptor in \{3: -1\}"):
        plan_fds({3: -1})
