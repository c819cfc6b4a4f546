"""Memory that the worker's main process shares with its pool. Used in both processes.

It is anonymous: it has no file and no name, so nothing is left of it when the worker ends, in
whatever way. The processes of the pool get it by being forked. One that was started in another way
has none, and notes nothing.
"""

from __future__ import annotations

from mmap import mmap

from celery.utils.log import get_logger

from .core.end_record import EndRecord, Memory

__all__ = ("MEMORY_BYTES", "open_memory", "record_at", "shared_memory")

logger = get_logger(__name__)

#: One byte for each request in the pool. The system provides what is used of it only.
MEMORY_BYTES = 1024 * 1024

_memory: Memory | None = None


def open_memory() -> None:
    """Provide the memory, before the pool is started. A second call does nothing."""
    global _memory
    if _memory is None:
        try:
            _memory = mmap(-1, MEMORY_BYTES)
        except OSError as exc:
            logger.warning(
                "Batches do without shared memory: %s. If a process of the pool is lost, calls "
                "without a stored result fail, also those that are done.",
                exc,
            )


def shared_memory() -> Memory | None:
    """Return the memory, or None if this process has none."""
    return _memory


def record_at(start: int | None, size: int) -> EndRecord | None:
    """Return the record of a batch of that many requests, or None if there is no such memory."""
    return None if start is None or _memory is None else EndRecord(_memory, start, size)
