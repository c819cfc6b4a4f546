"""The setting `batches_shortcuts`: what it may be, and what is said of anything else."""

from __future__ import annotations

from typing import Any

import pytest

from celery_batches.core.shortcuts import SETTING, SHORTCUTS, enabled_shortcuts


@pytest.mark.parametrize("conf", [{}, {SETTING: True}], ids=["default", "True"])
def test_all_are_on(conf: dict[str, Any]) -> None:
    assert enabled_shortcuts(conf) == SHORTCUTS


@pytest.mark.parametrize("setting", [False, [], (), set()])
def test_none_is_on(setting: Any) -> None:
    assert enabled_shortcuts({SETTING: setting}) == set()


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_those_that_are_named_are_on(kind: Any) -> None:
    """Any collection of names will do, such as a tuple from a settings module."""
    names = ["amqp_acks", "redis_acks"]
    assert enabled_shortcuts({SETTING: kind(names)}) == set(names)


@pytest.mark.parametrize("setting", [None, 0, 1, "amqp_acks", b"amqp_acks", {"amqp_acks": True}])
def test_what_is_no_collection_of_names_is_refused(setting: Any) -> None:
    """The error names the setting, what it is, and what it may be."""
    with pytest.raises(TypeError) as error:
        enabled_shortcuts({SETTING: setting})
    said = str(error.value)
    assert said.startswith(
        f"batches_shortcuts = {setting!r}: it has to be True (all), False (none)"
    )
    assert all(name in said for name in SHORTCUTS)


@pytest.mark.parametrize("unknown", ["amqp_ack", "", 7, None, ("amqp_acks",), ["amqp_acks"]])
def test_a_name_that_is_unknown_is_refused(unknown: Any) -> None:
    """A shortcut that was misspelt must not stay on, or off, unnoticed."""
    with pytest.raises(ValueError, match="batches_shortcuts names") as error:
        enabled_shortcuts({SETTING: ["amqp_acks", unknown]})
    said = str(error.value)
    assert said.startswith(f"batches_shortcuts names {unknown!r}, which is unknown")
    assert all(name in said for name in SHORTCUTS)
