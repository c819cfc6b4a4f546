"""The prefetch count, in which a batch counts as one task. Runs in the worker's main process.

The worker's budget is the number of processes times ``worker_prefetch_multiplier``. A batch counts
as one task against it. Beyond the budget, there is an allowance for

* one whole batch of each task that is filling one, and
* the other members of the batches in the pool, for at most as many batches as the budget.

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
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.common import PREFETCH_COUNT_MAX, QoS

from ..transports.redis_prefetch import limit_consumption
from .interfaces import Consumer

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer as WorkerConsumer

__all__ = (
    "Charge",
    "Prefetch",
    "count_batches_as_one",
    "prefetch_of",
    "warn_of_prefetch_limit",
)

logger = get_logger(__name__)

TOO_MANY = (
    "Task %s: flush_every is %d, but a prefetch count is at most %d. Batches will be flushed by "
    "flush_interval only. Lower flush_every, or set worker_prefetch_multiplier = 0 (no limit)."
)


class Charge:
    """The charge of one task on the budget, for a batch in the pool.

    Arguments:
        prefetch: The counter to charge, which is that of the connection of its messages.
        size: The number of its members.
    """

    __slots__ = ("_prefetch", "size")

    def __init__(self, prefetch: Prefetch, size: int) -> None:
        self._prefetch = prefetch
        self.size = size

    def refund(self) -> None:
        """Refund the charge, since the messages are acknowledged. A second call does nothing."""
        self._prefetch.refund(self)

    def finish(self) -> None:
        """Refund the charge, since the batch has ended. A second call does nothing."""
        self._prefetch.finish(self)


class Prefetch(QoS):  # type: ignore[misc]  # kombu is not typed
    """Celery's counter of one connection, ``consumer.qos``, with an allowance for batches.

    Only Celery changes its ``value``: with the size of the pool, for messages that wait for their
    ETA, and after a reconnect. The allowance is added when the prefetch count is sent.

    Arguments:
        counter: The counter that Celery has made for the connection.
        budget: Returns how many tasks the worker may hold. 0 means no limit.
        send: Sends a prefetch count to the broker. Defaults to Celery's own function.
    """

    def __init__(
        self,
        counter: QoS,
        budget: Callable[[], int],
        send: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(send or counter.callback, counter.value)
        # kombu 5.5 and newer have it for `worker_eta_task_limit`. The allowance does not count.
        self.max_prefetch = getattr(counter, "max_prefetch", None)
        self._budget = budget
        # Not kombu's mutex: Celery may replace it by one that locks nothing, and kombu holds it
        # during I/O. It is reentrant, since a signal handler that stops the pool may run callbacks.
        self._lock = RLock()
        self._sent: int | None = None
        self._filling = 0
        #: The batches in the pool, in the order in which they were sent.
        self._charges: dict[Charge, int] = {}
        #: For each task that reads ahead: the members of a full batch, but one.
        self._expected: list[int] = []
        #: Batches that have not ended, acknowledged or not.
        self._unfinished: set[Charge] = set()

    @property
    def total(self) -> int:
        """The prefetch count with the allowance. 0 means no limit.

        AMQP's prefetch count has 16 bits. For a larger value, kombu would set no limit.
        """
        value = int(self.value)
        if not 0 < value < PREFETCH_COUNT_MAX:
            return value
        with self._lock:
            # Batches beyond the budget get no allowance.
            batches = chain(self._charges.values(), cycle(self._expected))
            other_members = sum(islice(batches, self._budget()))
            return min(value + self._filling + other_members, int(PREFETCH_COUNT_MAX))

    def set(self, pcount: int) -> int:
        """Send the prefetch count if it has changed. As in kombu, ``prev`` is the last value."""
        with self._mutex:
            self.prev = self._sent
            self._sent = super().set(self.total)
            with self._lock:
                # Other threads, or messages that arrived during `set`, may have changed it.
                self.prev = self.value if self._sent == self.total else None
        return pcount

    def make_room(self, messages: int) -> None:
        """Change the allowance by so many messages."""
        with self._lock:
            self._filling += messages
            self.prev = None  # So that the event loop calls `set`.

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
        """Charge a batch in the pool as one task."""
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
        """Return the number of tasks that the worker has received and not ended. A batch is one.

        Arguments:
            reserved: The number of requests that it has received.
            buffered: The number of these that are in buffers. They do not count. Otherwise two
                batch tasks that share one process could keep each other from filling.
        """
        with self._lock:
            members = sum(charge.size for charge in self._unfinished)
            return max(0, reserved - buffered - members) + len(self._unfinished)


def prefetch_of(consumer: Consumer) -> Prefetch | None:
    """Return the consumer's counter, if it has an allowance for batches."""
    return consumer.qos if isinstance(consumer.qos, Prefetch) else None


def warn_of_prefetch_limit(task_name: str, flush_every: int, budget: int) -> None:
    """Warn if a batch of the task cannot fill, since the prefetch count cannot be so large."""
    if budget and flush_every > PREFETCH_COUNT_MAX:
        logger.warning(TOO_MANY, task_name, flush_every, PREFETCH_COUNT_MAX)


def count_batches_as_one(consumer: WorkerConsumer, buffered: Callable[[], int]) -> None:
    """Make ``worker_disable_prefetch`` count a batch as one task, like the prefetch budget.

    The limit is Celery's. This package counts the batches.

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
