"""What the body of a task may know of its batch. Pure. Used in both processes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ("BatchInfo", "FlushInfo")


@dataclass(frozen=True, slots=True)
class FlushInfo:
    """What the main process says of a batch that it sends to the pool. Picklable.

    Attributes:
        waited: Seconds since its oldest request arrived.
        sent_at: When that was, in seconds of the monotonic clock, which all processes of a machine
            share. None if the batch has not waited since.
        key: The key of its requests.
        weight: Their weight together.
    """

    waited: float = 0.0
    sent_at: float | None = None
    key: Hashable = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch that runs: ``self.batch`` in the body of a bound task.

    Attributes:
        id: The id of the batch, which is also that of ``self.request``.
        trigger: Why it was flushed: ``"size"``, ``"interval"``, ``"manual"``, …, as in the log.
            ``"manual"`` if your own code has made it, or a call runs eagerly.
        size: The number of its requests. The body may get fewer, for example with ``unique_key``.
        waited: How long its oldest request has waited when the batch begins, in seconds. It counts
            from the arrival of the request in the worker, or from its ETA.
        key: The key of its requests, or None.
        weight: The weight of its requests together, or None.
    """

    id: str
    trigger: str
    size: int
    waited: float = 0.0
    key: Hashable = None
    weight: float | None = None

    @classmethod
    def begin(
        cls, batch_id: str, trigger: str, size: int, flush: FlushInfo, *, now: float
    ) -> BatchInfo:
        """Return what is known of a batch that begins now, in seconds of the monotonic clock."""
        in_pool = 0.0 if flush.sent_at is None else max(0.0, now - flush.sent_at)
        waited = flush.waited + in_pool
        return cls(batch_id, trigger, size, waited, flush.key, flush.weight)
