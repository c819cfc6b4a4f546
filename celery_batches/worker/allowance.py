"""The messages of a batch task beyond the prefetch budget. Runs in the worker's main process."""

from __future__ import annotations

from celery.utils.log import get_logger

from .interfaces import Consumer
from .prefetch import Prefetch, prefetch_of

__all__ = ("BatchAllowance",)

logger = get_logger(__name__)

STATIC = (
    "Task %s: flush_every is %d now, but the prefetch count allows %d messages, and with quorum "
    "queues it cannot change while the worker runs. Batches will be flushed by flush_interval "
    "only. Set flush_every before the worker starts, or restart it."
)


class BatchAllowance:
    """The allowance of one batch task for the batch that it fills.

    Arguments:
        consumer: The worker's consumer.
        flush_every: The number of messages in a full batch.
    """

    __slots__ = ("_consumer", "_flush_every", "_messages", "_prefetch", "_static", "ahead_until")

    def __init__(self, consumer: Consumer, flush_every: int) -> None:
        self._consumer = consumer
        self._flush_every = flush_every
        self._prefetch: Prefetch | None = None
        self._messages = 0
        #: The allowance for as long as the worker runs, if the prefetch count cannot change.
        self._static: int | None = None
        #: The end of the read-ahead, or None without one.
        self.ahead_until: float | None = None

    def open(self, batches: int = 1) -> None:
        """Raise the prefetch count by a batch, unless that is done already.

        Arguments:
            batches: By how many batches: more than one if the prefetch count cannot change later.
        """
        # A batch of one is an ordinary task to the budget.
        if self._prefetch is None and self._flush_every > 1:
            self._prefetch = prefetch_of(self._consumer)
            if self._prefetch is not None:
                self._messages = self._flush_every * batches
                self._prefetch.make_room(self._messages)
                if batches > 1:
                    self._static = self._messages

    def resize(self, flush_every: int) -> None:
        """Change the number of messages in a full batch.

        The allowance stays the same if the prefetch count cannot change.
        """
        ahead_until = self.ahead_until
        self.stop_read_ahead()
        self._flush_every = flush_every
        if self._prefetch is None or self._static is not None:
            return
        if flush_every == 1:
            self.close()
            return
        self._prefetch.make_room(flush_every - self._messages)
        self._messages = flush_every
        if ahead_until is not None:
            self.start_read_ahead(ahead_until)

    def warn_of_static_limit(self, task_name: str) -> None:
        """Warn if a batch can no longer fill, since the prefetch count cannot change."""
        if self._prefetch is None or self._static is None:
            return
        most = self._static + int(self._prefetch.value)
        if self._prefetch.value and self._flush_every > most:
            logger.warning(STATIC, task_name, self._flush_every, most)

    def start_read_ahead(self, until: float) -> None:
        """Let the broker deliver full batches ahead until then, if there is an allowance."""
        if self._prefetch is not None:
            if self.ahead_until is None:
                self._prefetch.expect(self._flush_every)
            self.ahead_until = until

    def stop_read_ahead(self) -> None:
        """Stop counting batches that have not arrived yet."""
        if self._prefetch is not None and self.ahead_until is not None:
            self.ahead_until = None
            self._prefetch.expect_no_more(self._flush_every)

    def close(self) -> None:
        """Return the allowance, if there is one."""
        self.stop_read_ahead()
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is not None:
            prefetch.make_room(-self._messages)
