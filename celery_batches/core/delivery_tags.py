"""Which deliveries of an AMQP channel have been acknowledged, and how to say so of more. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ("DeliveryTags",)

#: Acknowledged deliveries after one that is not. With more, that one is taken to stay.
BEYOND = 10_000


class DeliveryTags:
    """The delivery tags of one channel that have been acknowledged here.

    A channel numbers its deliveries 1, 2, 3, … and what acknowledges one may be for ``multiple``:
    all that are outstanding up to this one (AMQP 0-9-1, ``basic.ack``). It may be only where each
    of those has been acknowledged here. A delivery that nobody has acknowledged yet, or that
    somebody else has, is a gap, and nothing here is ever for what comes before a gap.
    """

    __slots__ = ("_beyond", "_up_to")

    def __init__(self) -> None:
        #: All up to this one are acknowledged; None if that is not kept track of any more.
        self._up_to: int | None = 0
        #: Those that are so after the first gap.
        self._beyond: set[int] = set()

    def acknowledge(self, tags: Sequence[int]) -> list[tuple[int, bool]]:
        """Return what to say of these deliveries, in order: a tag, and whether it is for multiple.

        Arguments:
            tags: Those of deliveries that are to be acknowledged now.
        """
        ordered = sorted(tags)
        if self._up_to is not None and self._knows_any(ordered):
            self.give_up()  # The numbers have begun anew: another channel in the place of this one.
        if self._up_to is None:
            return [(tag, False) for tag in ordered]
        taken = 0
        for tag in ordered:
            if tag != self._up_to + 1:
                break
            self._up_to = tag
            taken += 1
            while self._up_to + 1 in self._beyond:
                self._up_to += 1
                self._beyond.discard(self._up_to)
        said = [(ordered[taken - 1], taken > 1)] if taken else []
        others = ordered[taken:]
        self._beyond.update(others)
        if len(self._beyond) > BEYOND:
            self.give_up()
        return said + [(tag, False) for tag in others]

    def give_up(self) -> None:
        """From now on, acknowledge each by itself."""
        self._up_to = None
        self._beyond.clear()

    def _knows_any(self, ordered: Sequence[int]) -> bool:
        return ordered[0] <= (self._up_to or 0) or not self._beyond.isdisjoint(ordered)
