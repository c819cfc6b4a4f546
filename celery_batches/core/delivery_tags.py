"""Decides which AMQP deliveries one frame may acknowledge. Pure. Used in the main process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ("Ack", "DeliveryTags")

#: A delivery tag, and whether it acknowledges all outstanding deliveries up to this one.
Ack: TypeAlias = "tuple[int, bool]"

#: The most acknowledged deliveries to remember after a gap. With more, the gap is taken to stay.
MAX_AFTER_GAP = 10_000


class DeliveryTags:
    """The delivery tags of one channel that have been acknowledged here.

    A channel numbers its deliveries 1, 2, 3, … A ``basic.ack`` with ``multiple`` acknowledges all
    outstanding deliveries up to its tag (AMQP 0-9-1). This class allows ``multiple`` only if each
    of these deliveries was acknowledged here. A delivery that is still outstanding, or that other
    code has acknowledged, is a gap. No frame with ``multiple`` crosses a gap.
    """

    __slots__ = ("_after_gap", "_up_to")

    def __init__(self) -> None:
        #: All deliveries up to this one are acknowledged. None after `stop_multiple`.
        self._up_to: int | None = 0
        #: The acknowledged deliveries after the first gap.
        self._after_gap: set[int] = set()

    def acknowledge(self, tags: Sequence[int]) -> list[Ack]:
        """Return ``(delivery_tag, multiple)`` pairs to acknowledge, in the order to write them.

        Arguments:
            tags: The delivery tags to acknowledge now.
        """
        ordered = sorted(tags)
        if self._up_to is not None and self._has_any(ordered):
            self.stop_multiple()  # The numbers have restarted: this is another channel.
        if self._up_to is None:
            return [(tag, False) for tag in ordered]
        covered = 0
        for tag in ordered:
            if tag != self._up_to + 1:
                break
            self._up_to = tag
            covered += 1
            while self._up_to + 1 in self._after_gap:
                self._up_to += 1
                self._after_gap.discard(self._up_to)
        acks = [(ordered[covered - 1], covered > 1)] if covered else []
        single_tags = ordered[covered:]
        self._after_gap.update(single_tags)
        if len(self._after_gap) > MAX_AFTER_GAP:
            self.stop_multiple()
        return acks + [(tag, False) for tag in single_tags]

    def stop_multiple(self) -> None:
        """Acknowledge each delivery separately from now on."""
        self._up_to = None
        self._after_gap.clear()

    def _has_any(self, ordered: Sequence[int]) -> bool:
        return ordered[0] <= (self._up_to or 0) or not self._after_gap.isdisjoint(ordered)
