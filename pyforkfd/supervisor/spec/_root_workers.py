"""Workers that are root without the capabilities that make root powerful."""

from __future__ import annotations

from ._privileges import CAPABILITIES, Holder, capabilities_for, identity
from ._spec import Component

_CHANGING_USER = ("CHOWN", "SETGID", "SETUID")
"""Capabilities that a program needs which starts as root and then changes its user."""
_OFTEN_NEEDED = (*_CHANGING_USER, "DAC_OVERRIDE", "KILL", "NET_BIND_SERVICE")
"""With those to open its files, to signal its own workers, which are another user's then, and to
bind a port below 1024."""


def powerless_root(component: Component, holder: Holder | None = None) -> str | None:
    """Return the remedy for workers that are root and cannot change their user.

    Args:
        component: a valid component.
        holder: the privileges of the process that spawns; None: the calling process now.

    Returns:
        What to write into the specification; None: the workers are another user, or have
        the capabilities, or the supervisor itself does not have them.
    """
    holder = holder or Holder.now()
    privileges = component.privileges
    if "user" in privileges.namespaces:
        return None
    try:
        user = identity(privileges)[0]
    except (LookupError, ValueError):
        return None  # the spawn fails, and names the cause
    given = frozenset(capabilities_for(component, holder).permitted or ())
    changing = {CAPABILITIES[name] for name in _CHANGING_USER}
    if (holder.user if user is None else user) != 0 or not (changing & holder.permitted) - given:
        return None
    wanted = given | {CAPABILITIES[name] for name in _OFTEN_NEEDED}
    names = [name for name, number in CAPABILITIES.items() if number in wanted & holder.permitted]
    listed = ", ".join(f'"{name}"' for name in names)
    return f'write privileges.capabilities = [{listed}], or privileges.user = "..."'
