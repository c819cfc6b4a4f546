"""The messages of a batch task beyond the prefetch budget. Runs in the worker's main process."""

from __future__ import annotations

from math import inf

from celery.utils.log import get_logger
from kombu.common import PREFETCH_COUNT_MAX

from .interfaces import Consumer
from .prefetch import Prefetch, prefetch_of

__all__ = ("BatchAllowance",)

logger = get_logger(__name__)

STATIC = (
    "Task %s: flush_every is %d now, but the prefetch count allows %d messages, and with quorum "
    "queues it cannot change while the worker runs. Batches will be flushed by flush_interval "
    "only. Set flush_every before the worker starts, or restart it."
)


#: The most messages for batches that fill, if several do: half of a prefetch count in AMQP. The
#: other half is for batches in the pool, and for other tasks.
MOST_FILLING: int = (PREFETCH_COUNT_MAX + 1) // 2


class BatchAllowance:
    """Messages that the broker may deliver on behalf of one batch task, on top of the budget.

    Arguments:
        consumer: The worker's consumer.
        flush_every: The number of messages in a full batch.
    """

    __slots__ = (
        "_batches",
        "_consumer",
        "_flush_every",
        "_held",
        "_messages",
        "_prefetch",
        "_static",
        "_static_room",
        "ahead_until",
    )

    def __init__(self, consumer: Consumer, flush_every: int) -> None:
        self._consumer = consumer
        self._flush_every = flush_every
        self._prefetch: Prefetch | None = None
        #: The batches that may fill, and the messages for them.
        self._batches = self._messages = 0
        #: The messages for batches of suspects, and the counter that has them.
        self._held: tuple[Prefetch | None, int] = (None, 0)
        #: The messages that the broker was asked for once, where it cannot be asked again, and how
        #: many of these are for batches that fill.
        self._static: int | None = None
        self._static_room = 0
        #: The end of the read-ahead, or None while there is none.
        self.ahead_until: float | None = None

    @property
    def room(self) -> float:
        """The messages that the broker delivers for batches that fill. Infinite without a limit."""
        prefetch = self._prefetch
        if prefetch is None or not prefetch.value:
            return inf
        return self._messages if self._static is None else self._static_room

    def reserve(self, batches: int, *, filling: int, more: int = 0) -> None:
        """Let the broker deliver so much from now on, since it cannot be asked again.

        Arguments:
            batches: The batches that may run or fill.
            filling: How many of them may fill.
            more: The number of messages beside them.
        """
        self._static = 0
        if self._prefetch is None and self._flush_every > 1:
            self._prefetch = prefetch_of(self._consumer)
            if self._prefetch is not None:
                running = (batches - filling) * self._flush_every
                self._static_room = self._messages_of(filling)
                self._messages = self._static = running + self._static_room + more
                self._prefetch.make_room(self._messages)

    def open(self, batches: int = 1) -> None:
        """Let the broker deliver so many batches that fill, unless it may already.

        Arguments:
            batches: The number of batches.
        """
        # A batch of one is an ordinary task to the budget.
        if self._static is not None or self._flush_every == 1:
            return
        if self._prefetch is None:
            self._prefetch = prefetch_of(self._consumer)
        if batches > self._batches:
            self._set(batches)

    def shrink(self, batches: int) -> None:
        """Let the broker deliver no more than so many batches that fill."""
        if self._static is None and batches < self._batches:
            self._set(batches)

    def _set(self, batches: int) -> None:
        messages = self._messages_of(batches)
        if self._prefetch is not None:
            self._batches = batches
            if messages != self._messages:
                self._prefetch.make_room(messages - self._messages)
                self._messages = messages

    def _messages_of(self, batches: int) -> int:
        return max(self._flush_every, min(self._flush_every * batches, MOST_FILLING))

    def hold(self, messages: int, *, at_least: bool = False) -> None:
        """Let the broker deliver that many messages for batches of suspects, on top of a batch.

        Where the broker cannot be asked again, `reserve` has asked for them.

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
        self._set(self._batches)
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
            self._batches = self._messages = 0
