"""The channel that a message came on."""

from __future__ import annotations

from typing import Any


class Channel:
    """Stands in for a transport's channel: it records what the broker would be told."""

    no_ack_consumers: frozenset[str] = frozenset()

    def __init__(self) -> None:
        #: What was said of which delivery: ``ack``, ``reject`` or ``requeue``.
        self.said: list[tuple[str, Any]] = []

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        self.said.append(("ack", delivery_tag))

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        self.said.append(("requeue" if requeue else "reject", delivery_tag))

    def of(self, delivery_tag: Any) -> list[str]:
        """What was said of one delivery."""
        return [what for what, about in self.said if about == delivery_tag]
