"""The worker's bootstep for batch tasks. Runs in the worker's main process."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from kombu.common import ignore_errors

from ..core.shortcuts import enabled_shortcuts
from ..transports.amqp_prefetch import without_waiting
from ..transports.amqp_reader import read_many
from ..transports.traits import traits_of
from .prefetch import (
    Prefetch,
    count_batches_as_one,
    prefetch_of,
)
from .strategy import BatchStrategy, strategy_of
from .unknown_tasks import Strategies

__all__ = ("BatchesStep",)


class BatchesStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is not typed
    """Tells the batch tasks when the consumer is ready and when it stops.

    Celery also stops its consumer's steps when it loses the connection.
    """

    label = "batches"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        """Refuse a setting that makes no sense before the worker starts.

        Raises:
            TypeError: If ``batches_shortcuts`` is neither a boolean nor a collection of names.
            ValueError: If it has a name that is not known.
        """
        self._shortcuts = enabled_shortcuts(c.app.conf)
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        """Have a prefetch count with room for batches. Celery's step has made its own by now."""
        if type(c.strategies) is dict:  # It may have a table of its own: `Consumer.Strategies`.
            c.strategies = Strategies(c)
        tell = without_waiting(c) if "amqp_prefetch" in self._shortcuts else None
        c.qos = Prefetch(c.qos, lambda: c.initial_prefetch_count, tell)
        traits = traits_of(c)
        for strategy in self._strategies(c):
            strategy.warn_of_broker_limits()
            if traits.static_prefetch:
                # One batch is filled while as many others run as there are processes.
                strategy.reserve(int(c.pool.num_processes) + 1)
        if traits.takes_what_is_free:
            count_batches_as_one(c, lambda: sum(s.buffered for s in self._strategies(c)))
        # Before the first message is asked for.
        c.qos.update()

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Read many messages in each turn of the event loop."""
        if "amqp_reader" in self._shortcuts:
            read_many(c, hub)

    def info(self, c: Any) -> dict[str, Any]:
        """Return what ``inspect stats`` shows: the prefetch count with the room for batches."""
        return {"prefetch_count": c.qos.total} if prefetch_of(c) else {}

    def stop(self, c: Any) -> None:
        """Retire every strategy: what is buffered goes back to the broker.

        When the connection is lost it does so by that. When the worker stops, the connection is
        kept until the batches that run have ended: on AMQP, what is buffered is sent back before.
        """
        # Without an event loop, Celery before 5.7 forgets the acknowledgements that still wait for
        # the loop to come round: a batch that has run would be delivered again.
        c.perform_pending_operations()
        stopping = c.blueprint.state in (bootsteps.CLOSE, bootsteps.TERMINATE)
        requeue = stopping and traits_of(c).requeues_on_stop
        if requeue and c.task_consumer is not None:
            # Or it would be delivered here again.
            ignore_errors(c.connection, c.task_consumer.cancel)
        for strategy in self._strategies(c):
            strategy.retire(requeue=requeue)
            if not stopping:
                strategy.sender.release_waiting()

    def _strategies(self, c: Any) -> list[BatchStrategy]:
        found = [strategy_of(c, name) for name in list(c.strategies)]
        return [strategy for strategy in found if strategy is not None]
