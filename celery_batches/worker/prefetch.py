"""How many messages the broker may deliver ahead. Runs in the worker's main process.

A batch counts as one task against ``worker_prefetch_multiplier``, whose product with the number of
processes is the worker's budget. Beyond it there is room for

* one whole batch of each task that is filling one, and
* the other members of the batches on their way, of at most as many batches as the budget says.

After a full batch, the worker assumes that more follow, and counts them as on their way before they
have arrived. So the prefetch count need not change for each batch. What the broker has delivered
ahead keeps the worker busy while the broker is silent, which may take many milliseconds.

So with one batch task a worker holds ``(budget + 1) * flush_every`` messages at most. A task that
gets no messages takes no room. The prefetch count changes by whole batches, never by single
messages, and on AMQP the worker does not wait for the broker's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, cycle, islice
from threading import RLock
from typing import Any

from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.common import PREFETCH_COUNT_MAX, QoS

from ..transports.redis_prefetch import limit_consumption
from .interfaces import Consumer

__all__ = (
    "Charge",
    "Prefetch",
    "count_batches_as_one",
    "prefetch_of",
    "warn_of_prefetch_limit",
)

logger = get_logger(__name__)

TOO_MANY = (
    "Task %s: flush_every is %d, and a broker can be told to deliver at most %d messages ahead: "
    "batches will be flushed by flush_interval only. Lower flush_every, or set "
    "worker_prefetch_multiplier = 0 (no limit)."
)


class Charge:
    """A batch on its way, which the budget is charged one task for.

    Arguments:
        prefetch: The counter that is charged: that of the connection which its messages came on.
        size: The number of its members.
    """

    __slots__ = ("_prefetch", "size")

    def __init__(self, prefetch: Prefetch, size: int) -> None:
        self._prefetch = prefetch
        self.size = size

    def refund(self) -> None:
        """The broker counts the members of the batch no more. Again does nothing."""
        self._prefetch.refund(self)

    def finish(self) -> None:
        """The batch has ended, and with it what it is charged for. Again does nothing."""
        self._prefetch.finish(self)


class Prefetch(QoS):  # type: ignore[misc]  # kombu is not typed
    """Celery's counter of one connection, ``consumer.qos``, with room for batches on top of it.

    Its ``value`` stays Celery's alone: what grows and shrinks with the pool, with the messages that
    wait for their ETA, and after a reconnect. The room is added when the broker is told.

    Arguments:
        counter: The counter that Celery has made for the connection.
        budget: Returns how many tasks the worker may hold, 0 meaning that there is no limit.
        tell: Tells the broker; by default, what Celery does so with.
    """

    def __init__(
        self,
        counter: QoS,
        budget: Callable[[], int],
        tell: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(tell or counter.callback, counter.value)
        # `worker_eta_task_limit`, in Kombu 5.5 and newer: no limit for batches.
        self.max_prefetch = getattr(counter, "max_prefetch", None)
        self._budget = budget
        # Not kombu's own: Celery replaces that by one that locks nothing, and it is held while the
        # broker is told. It can be taken again: a signal handler that stops the pool has callbacks
        # run.
        self._lock = RLock()
        self._told: int | None = None
        self._filling = 0
        #: The batches on their way, in the order in which they were sent.
        self._charges: dict[Charge, int] = {}
        #: For each task that reads ahead: the members of a full batch, but one.
        self._expected: list[int] = []
        #: Batches that have not ended, acknowledged or not.
        self._unfinished: set[Charge] = set()

    @property
    def total(self) -> int:
        """What the broker may deliver, 0 meaning that there is no limit.

        AMQP's prefetch count has 16 bits; kombu would let the broker deliver all it has beyond.
        """
        value = int(self.value)
        if not 0 < value < PREFETCH_COUNT_MAX:
            return value
        with self._lock:
            # Batches beyond the budget use up the room that there is.
            batches = chain(self._charges.values(), cycle(self._expected))
            on_their_way = sum(islice(batches, self._budget()))
            return min(value + self._filling + on_their_way, int(PREFETCH_COUNT_MAX))

    def set(self, pcount: int) -> int:
        """Tell the broker, if that is news. As in kombu, ``prev`` is what it was set to last."""
        with self._mutex:
            self.prev = self._told
            self._told = super().set(self.total)
            with self._lock:
                # Other threads, or what came in while the broker was told, may have changed it.
                self.prev = self.value if self._told == self.total else None
        return pcount

    def make_room(self, messages: int) -> None:
        """Let the broker deliver that many more, or fewer if it is negative."""
        with self._lock:
            self._filling += messages
            self.prev = None  # So that the event loop tells the broker.

    def expect(self, size: int) -> None:
        """Count batches of that size as on their way before they have arrived."""
        with self._lock:
            self._expected.append(size - 1)
            self.prev = None

    def expect_no_more(self, size: int) -> None:
        """Stop counting batches of that size that have not arrived yet."""
        with self._lock:
            self._expected.remove(size - 1)
            self.prev = None

    def charge(self, size: int) -> Charge:
        """Charge a batch that is sent to the pool as one task."""
        charge = Charge(self, size)
        with self._lock:
            self._unfinished.add(charge)
            self._charges[charge] = size - 1
            self.prev = None
        return charge

    def refund(self, charge: Charge) -> None:
        """See `Charge.refund`."""
        with self._lock:
            self._charges.pop(charge, None)
            self.prev = None

    def finish(self, charge: Charge) -> None:
        """See `Charge.finish`."""
        self.refund(charge)
        with self._lock:
            self._unfinished.discard(charge)

    def busy(self, reserved: int, buffered: int) -> int:
        """Return how many tasks the worker has taken in that have not ended, a batch being one.

        Arguments:
            reserved: The requests that it has taken in.
            buffered: Those among them that are not in a batch yet: they count for nothing, or two
                batch tasks that share one process would not let each other fill.
        """
        with self._lock:
            members = sum(charge.size for charge in self._unfinished)
            return max(0, reserved - buffered - members) + len(self._unfinished)


def prefetch_of(consumer: Consumer) -> Prefetch | None:
    """Return the consumer's counter, if it is one that has room for batches."""
    return consumer.qos if isinstance(consumer.qos, Prefetch) else None


def warn_of_prefetch_limit(task_name: str, flush_every: int, budget: int) -> None:
    """Warn if a batch of the task cannot fill, since no broker delivers so many messages ahead."""
    if budget and flush_every > PREFETCH_COUNT_MAX:
        logger.warning(TOO_MANY, task_name, flush_every, PREFETCH_COUNT_MAX)


def count_batches_as_one(consumer: Any, buffered: Callable[[], int]) -> None:
    """Have ``worker_disable_prefetch`` count a batch as one task, like the prefetch budget does.

    The limit is Celery's, what it is compared with is ours.

    Arguments:
        consumer: The worker's consumer.
        buffered: Returns how many requests are in buffers.
    """
    prefetch = prefetch_of(consumer)

    def is_full() -> bool:
        limit = getattr(consumer.controller, "max_concurrency", None) or consumer.pool.num_processes
        if prefetch is None:
            return False
        return bool(prefetch.busy(len(worker_state.reserved_requests), buffered()) >= limit)

    limit_consumption(consumer.task_consumer.channel, is_full)
