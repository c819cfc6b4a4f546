"""How many messages the broker may deliver ahead of a batch task. Runs in the main process.

A batch counts as one task against ``worker_prefetch_multiplier``: the broker may deliver as many
more messages as the buffer and the batches on their way hold beyond that one. It is told of whole
batches, never of single messages, since on AMQP each change is a round trip.
"""

from __future__ import annotations

from typing import Any

from kombu.common import PREFETCH_COUNT_MAX

__all__ = ("PrefetchRoom",)


class PrefetchRoom:
    """The messages that one batch task may hold above the consumer's prefetch count.

    Arguments:
        consumer: The worker's consumer; its ``qos`` is Celery's own counter, which leaves a count
            of 0 (no limit) alone and tells the broker when the event loop comes round to it.
        flush_every: The number of messages in a full batch.
    """

    __slots__ = ("_consumer", "_flush_every", "_opened", "_qos")

    def __init__(self, consumer: Any, flush_every: int) -> None:
        self._consumer = consumer
        self._flush_every = flush_every
        self._qos: Any = None
        self._opened = 0

    def open(self, batches: int = 1) -> None:
        """Make room for the batch that is being filled. The consumer must have its ``qos``.

        Arguments:
            batches: For how many there is to be room: more than one where the broker cannot be told
                of more later.
        """
        if self._qos is None:
            self._qos = self._consumer.qos
            self._opened = _grow(self._qos, self._flush_every * batches)

    def close(self) -> None:
        """Give that room back."""
        qos, self._qos = self._qos, None
        if qos is not None:
            _shrink(qos, self._opened)

    def take(self, size: int) -> Any:
        """Make room for a batch on its way, which is charged as one; return it for `give_back`."""
        if self._qos is None or size <= 1:
            return self._qos, 0
        return self._qos, _grow(self._qos, size - 1)

    @staticmethod
    def give_back(room: Any) -> None:
        """Its messages are acknowledged: the broker no longer counts them."""
        qos, extra = room
        if qos is not None and extra > 0:
            _shrink(qos, extra)


def _grow(qos: Any, count: int) -> int:
    """Let the broker deliver that many more, or as many as it can be told; return how many."""
    # AMQP's prefetch count has 16 bits; kombu would let the broker deliver all it has beyond that.
    count = max(0, min(count, PREFETCH_COUNT_MAX - qos.value))
    if count:
        # `worker_eta_task_limit` is a limit for what waits for its ETA, not for batches.
        if getattr(qos, "max_prefetch", None) is not None:
            qos.max_prefetch += count
        qos.increment_eventually(count)
    return count


def _shrink(qos: Any, count: int) -> None:
    if getattr(qos, "max_prefetch", None) is not None:
        qos.max_prefetch -= count
    qos.decrement_eventually(count)
