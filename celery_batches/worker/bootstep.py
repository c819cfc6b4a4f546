"""The worker's bootstep for batch tasks. Runs in the worker's main process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps
from kombu.common import ignore_errors

from ..core.shortcuts import enabled_shortcuts
from ..shared_memory import open_memory
from ..transports.amqp_prefetch import prefetch_sender
from ..transports.amqp_reader import read_many
from ..transports.consumer_timeout import consumer_timeout
from ..transports.traits import traits_of
from .prefetch import (
    Prefetch,
    count_batches_as_one,
    prefetch_of,
)
from .strategy import BatchStrategy, strategy_of
from .unknown_tasks import Strategies

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.asynchronous import Hub

__all__ = ("BatchesStep",)


class BatchesStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is not typed
    """Starts the strategies of batch tasks with the consumer, and retires them when it stops.

    Celery also stops its consumer's steps when it loses the connection.
    """

    label = "batches"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Consumer, **kwargs: Any) -> None:
        """Refuse an invalid setting before the worker starts.

        Raises:
            TypeError: If ``batches_shortcuts`` is neither a boolean nor a collection of names, or
                ``batches_consumer_timeout`` neither a number nor None.
            ValueError: If the one has an unknown name, or the other is not above 0.
        """
        self._shortcuts = enabled_shortcuts(c.app.conf)
        consumer_timeout(c.app.conf)
        # Celery starts its pool after it has made the steps of its consumer.
        open_memory()
        super().__init__(c, **kwargs)

    def start(self, c: Consumer) -> None:
        """Replace the prefetch counter of Celery's step by one with an allowance for batches."""
        if type(c.strategies) is dict:  # A subclass may have its own `Consumer.Strategies`.
            c.strategies = Strategies(c)
        send = prefetch_sender(c) if "amqp_prefetch" in self._shortcuts else None
        c.qos = Prefetch(c.qos, lambda: c.initial_prefetch_count, send)
        traits = traits_of(c)
        for strategy in self._strategies(c):
            strategy.warn_of_broker_limits()
            if traits.static_prefetch:
                # One batch fills while each process of the pool runs another one.
                strategy.reserve(int(c.pool.num_processes) + 1)
        if traits.receives_for_free_processes:
            count_batches_as_one(c, lambda: sum(s.buffered for s in self._strategies(c)))
        # Celery starts to consume after this step.
        c.qos.update()

    def register_with_event_loop(self, c: Consumer, hub: Hub) -> None:
        """Read many messages in each turn of the event loop."""
        if "amqp_reader" in self._shortcuts:
            read_many(c, hub)

    def info(self, c: Consumer) -> dict[str, Any]:
        """Return the entry of ``inspect stats``: the prefetch count with the allowance."""
        return {"prefetch_count": c.qos.total} if prefetch_of(c) else {}

    def stop(self, c: Consumer) -> None:
        """Retire every strategy, so that buffered messages go back to the broker.

        When the connection is lost, the broker requeues them itself. When the worker stops, the
        connection stays open until the running batches have ended. So on AMQP the worker requeues
        buffered messages before that.
        """
        # Without an event loop, Celery before 5.7 drops acknowledgements that are still pending. A
        # batch that has run would be redelivered.
        c.perform_pending_operations()
        stopping = c.blueprint.state in (bootsteps.CLOSE, bootsteps.TERMINATE)
        requeue = stopping and traits_of(c).requeues_on_stop
        if requeue and c.task_consumer is not None:
            # Otherwise the broker would redeliver them to this worker.
            ignore_errors(c.connection, c.task_consumer.cancel)
            # After an error that ends the worker, py-amqp's channel may be closed, and has none.
            requeue = getattr(c.task_consumer.channel, "connection", c) is not None
        for strategy in self._strategies(c):
            strategy.retire(requeue=requeue)
            if not stopping:
                strategy.sender.release_waiting()

    def _strategies(self, c: Consumer) -> list[BatchStrategy]:
        found = [strategy_of(c, name) for name in list(c.strategies)]
        return [strategy for strategy in found if strategy is not None]
