"""How many messages the broker may deliver ahead of a batch task. Runs in the main process.

A batch counts as one task against ``worker_prefetch_multiplier``: the broker may deliver as many
more messages as the buffer and the batches on their way hold beyond that one. It is told of whole
batches, never of single messages, since on AMQP each change is a round trip.
"""

from __future__ import annotations

from typing import Any

__all__ = ("PrefetchRoom",)


class PrefetchRoom:
    """The messages that one batch task may hold above the consumer's prefetch count.

    Arguments:
        consumer: The worker's consumer; its ``qos`` is Celery's own counter, which leaves a count
            of 0 (no limit) alone and tells the broker when the event loop comes round to it.
        flush_every: The number of messages in a full batch.
    """

    __slots__ = ("_consumer", "_flush_every", "_qos")

    def __init__(self, consumer: Any, flush_every: int) -> None:
        self._consumer = consumer
        self._flush_every = flush_every
        self._qos: Any = None

    def open(self) -> None:
        """Make room for the batch that is being filled. The consumer must have its ``qos``."""
        if self._qos is None:
            self._qos = self._consumer.qos
            self._qos.increment_eventually(self._flush_every)

    def close(self) -> None:
        """Give that room back."""
        qos, self._qos = self._qos, None
        if qos is not None:
            qos.decrement_eventually(self._flush_every)

    def take(self, size: int) -> Any:
        """Make room for a batch on its way, which is charged as one; return it for `give_back`."""
        if self._qos is not None and size > 1:
            self._qos.increment_eventually(size - 1)
        return self._qos, size - 1

    @staticmethod
    def give_back(room: Any) -> None:
        """Its messages are acknowledged: the broker no longer counts them."""
        qos, extra = room
        if qos is not None and extra > 0:
            qos.decrement_eventually(extra)
