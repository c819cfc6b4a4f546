"""Which shortcuts past Celery, kombu and py-amqp are enabled. Pure. Used in both processes.

``docs/shortcuts.rst`` lists what each shortcut steps over, and what it gains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, cast, get_args

__all__ = ("SETTING", "SHORTCUTS", "Shortcut", "enabled_shortcuts")

#: The app setting that enables them.
SETTING = "batches_shortcuts"

Shortcut = Literal[
    "amqp_acks",
    "amqp_frames",
    "amqp_nack",
    "amqp_prefetch",
    "amqp_publish",
    "amqp_reader",
    "bulk_results",
    "hard_limit",
    "lean_promises",
    "message_templates",
    "redis_acks",
    "redis_publish",
]

SHORTCUTS: frozenset[Shortcut] = frozenset(get_args(Shortcut))

NAMES = ", ".join(sorted(SHORTCUTS))
CHOICES = f"True (all), False (none), or a collection of these names: {NAMES}"


def enabled_shortcuts(conf: Mapping[str, Any]) -> frozenset[Shortcut]:
    """Return the shortcuts that an app's configuration enables. By default, these are all.

    Arguments:
        conf: The configuration, such as ``app.conf``.

    Raises:
        TypeError: If the setting is neither a boolean nor a collection of names.
        ValueError: If it has an unknown name.
    """
    setting = conf.get(SETTING, True)
    if isinstance(setting, bool):
        return SHORTCUTS if setting else frozenset()
    # A string is a collection of characters, so refuse it.
    if isinstance(setting, str | bytes | Mapping) or not isinstance(setting, Collection):
        raise TypeError(f"{SETTING} = {setting!r}: it has to be {CHOICES}")
    unknown = [name for name in setting if not isinstance(name, str) or name not in SHORTCUTS]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"{SETTING} names {names}, which is unknown: it has to be {CHOICES}")
    return frozenset(cast("Collection[Shortcut]", setting))
