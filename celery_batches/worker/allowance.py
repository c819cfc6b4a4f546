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
    """Messages that the broker may deliver on behalf of one batch task, on top of the budget.

    Arguments:
        consumer: The worker's consumer.
        flush_every: The number of messages in a full batch.
    """

    __slots__ = (
        "_consumer",
        "_flush_every",
        "_held",
        "_messages",
        "_prefetch",
        "_static",
        "ahead_until",
    )

    def __init__(self, consumer: Consumer, flush_every: int) -> None:
        self._consumer = consumer
        self._flush_every = flush_every
        self._prefetch: Prefetch | None = None
        self._messages = 0
        #: The messages for batches of suspects, and the counter that has them.
        self._held: tuple[Prefetch | None, int] = (None, 0)
        #: The messages that the broker was asked for once, where it cannot be asked again.
        self._static: int | None = None
        #: The end of the read-ahead, or None while there is none.
        self.ahead_until: float | None = None

    def open(self, batches: int = 1, *, more: int = 0) -> None:
        """Let the broker deliver a batch, unless it may already.

        Arguments:
            batches: The number of batches: more than one where the broker cannot be asked again.
            more: The number of messages beside them.
        """
        if batches > 1:
            self._static = 0
        # A batch of one is an ordinary task to the budget.
        if self._prefetch is None and self._flush_every > 1:
            self._prefetch = prefetch_of(self._consumer)
            if self._prefetch is not None:
                self._messages = self._flush_every * batches + more
                self._prefetch.make_room(self._messages)
                if batches > 1:
                    self._static = self._messages

    def hold(self, messages: int, *, at_least: bool = False) -> None:
        """Let the broker deliver that many messages for batches of suspects, on top of a batch.

        Where the broker cannot be asked again, `open` has asked for them.

        Arguments:
            messages: The number of messages. 0 withdraws them.
            at_least: Whether more than that may stay, so that the count changes less often.
        """
        prefetch, held = self._held
        if messages == held or (at_least and messages < held) or self._static is not None:
            return
        prefetch = prefetch or prefetch_of(self._consumer)
        if prefetch is not None:
            prefetch.make_room(messages - held)
            self._held = (prefetch, messages) if messages else (None, 0)

    def resize(self, flush_every: int) -> None:
        """Change the number of messages in a full batch.

        Where the broker cannot be asked again, it goes on delivering what it was asked for.
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
        """Warn if a batch cannot fill any more, since the broker cannot be asked for more."""
        prefetch = prefetch_of(self._consumer)
        if self._static is None or prefetch is None:
            return
        most = self._static + int(prefetch.value)
        if prefetch.value and self._flush_every > most:
            logger.warning(STATIC, task_name, self._flush_every, most)

    def start_read_ahead(self, until: float) -> None:
        """Have full batches delivered ahead until then: after a full batch, more are likely."""
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
        """Withdraw the allowance for a batch, if there is one."""
        self.stop_read_ahead()
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is not None:
            prefetch.make_room(-self._messages)
