"""Rate limits: a batch counts as one task. Runs in the worker's main process."""

from __future__ import annotations

from .interfaces import Bucket, Consumer

__all__ = ("RateLimit",)

#: The longest wait in seconds before the next check, since ``control.rate_limit`` may change the
#: limit.
MAX_WAIT_SECONDS = 1.0


class RateLimit:
    """The rate limit of one batch task: Celery's token bucket for it, spent on batches.

    Arguments:
        consumer: The worker's consumer. It has a bucket for each task with a limit, and a new one
            after each change of a limit.
        name: Name of the task.
    """

    __slots__ = ("_consumer", "_name")

    def __init__(self, consumer: Consumer, name: str) -> None:
        self._consumer = consumer
        self._name = name

    @property
    def _bucket(self) -> Bucket | None:
        if self._consumer.disable_rate_limits:
            return None
        bucket: Bucket | None = self._consumer.task_buckets[self._name]
        return bucket

    @property
    def is_off(self) -> bool:
        """Whether the task has no rate limit."""
        return self._bucket is None

    def allows(self) -> bool:
        """Take a token for a batch, and return whether there was one."""
        bucket = self._bucket
        return bucket is None or bucket.can_consume(1)

    def wait(self) -> float:
        """Return the seconds until the next check."""
        bucket = self._bucket
        return 0.0 if bucket is None else min(bucket.expected_time(1), MAX_WAIT_SECONDS)
