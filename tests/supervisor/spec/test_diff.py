"""What a reload has to touch."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyforkfd.supervisor.spec._diff import Difference, Names, diff
from pyforkfd.supervisor.spec._spec import Component, Listener, Log, Service, ZygoteSpec

WEB = Component(name="web", function="shop:web", listen=("http",), zygote="py")
KEYS = Component(name="keys", command=("/bin/keys",), listen=("keys",))
OLD = Service(
    name="shop",
    components={"web": WEB, "keys": KEYS},
    listeners={
        "http": Listener(name="http", address="tcp://:80"),
        "keys": Listener(name="keys", address="unix:/run/keys"),
    },
    zygotes={"py": ZygoteSpec(name="py")},
)


def with_web(**changes: Any) -> Service:
    return replace(OLD, components={"web": replace(WEB, **changes), "keys": KEYS})


def test_nothing_has_changed() -> None:
    assert not diff(OLD, replace(OLD))
    assert diff(OLD, OLD) == Difference()


def test_a_worker_that_is_started_differently() -> None:
    for changes in ({"env": {"A": "1"}}, {"cwd": "/"}, {"args": (1,)}, {"listen": ()}):
        assert diff(OLD, with_web(**changes)) == Difference(components=Names(changed=("web",)))


def test_what_only_the_supervisor_does() -> None:
    for changes in ({"workers": 9}, {"drain_timeout": 5.0}, {"on_crash": ("a:b",)}):
        assert diff(OLD, with_web(**changes)) == Difference(adjusted=("web",))


def test_a_listener_or_a_zygote_renews_its_users() -> None:
    http = replace(OLD.listeners["http"], backlog=5)
    new = replace(OLD, listeners={**OLD.listeners, "http": http})
    assert diff(OLD, new) == Difference(
        components=Names(changed=("web",)), listeners=Names(changed=("http",))
    )
    new = replace(OLD, zygotes={"py": ZygoteSpec(name="py", preload=("json",))})
    assert diff(OLD, new) == Difference(
        components=Names(changed=("web",)), zygotes=Names(changed=("py",))
    )


def test_what_appears_and_goes() -> None:
    new = replace(
        OLD,
        components={"keys": KEYS, "mail": Component(name="mail", command=("/bin/mail",))},
        listeners={"keys": OLD.listeners["keys"]},
        zygotes={},
        log=Log(keep=9),
        rollback=5.0,
    )
    assert diff(OLD, new) == Difference(
        components=Names(added=("mail",), removed=("web",)),
        listeners=Names(removed=("http",)),
        zygotes=Names(removed=("py",)),
        sections=("log", "rollback"),
    )


CHANGES: dict[str, Any] = {
    field.name: value
    for field in dataclasses.fields(Component)
    for value in [object()]
    if field.name not in ("name", "listen", "zygote")
}


@given(st.sets(st.sampled_from(sorted(CHANGES)), min_size=1))
def test_no_change_of_a_component_goes_unseen(names: set[str]) -> None:
    found = diff(OLD, with_web(**{name: CHANGES[name] for name in names}))
    assert (found.components.changed == ("web",)) is not (found.adjusted == ("web",))
    back = diff(with_web(**{name: CHANGES[name] for name in names}), OLD)
    assert back == found
