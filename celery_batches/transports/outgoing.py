"""A message that is ready to be published. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from kombu.exceptions import OperationalError
from kombu.transport.base import StdChannel

__all__ = ("NotPublished", "OnPublished", "Outgoing", "StdChannel")

#: Called with the position of each message that the broker has.
OnPublished: TypeAlias = "Callable[[int], None]"


class Outgoing(NamedTuple):
    """A message as the channel has made it, and the options of its ``basic_publish``."""

    message: Any
    options: dict[str, Any]


class NotPublished(OperationalError):  # type: ignore[misc]  # kombu is not typed
    """The broker has refused messages."""
