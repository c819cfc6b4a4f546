"""Gives each batch in the pool a record in the shared memory. Runs in the worker's main process.

A record outlives the process that writes it. `stored_ends` reads it if the process is lost.
"""

from __future__ import annotations

from collections import defaultdict
from threading import RLock

from celery.utils.log import get_logger

from ..core.end_record import End, EndRecord, Memory, Phase
from ..shared_memory import MEMORY_BYTES, shared_memory
from .processes import is_child

__all__ = ("BatchRecord", "Records", "records")

logger = get_logger(__name__)

#: The size of the smallest piece of memory. Each larger one has twice the size of the next smaller.
SMALLEST = 16

FULL = (
    "The pool has so many requests that not all batches have a record. If a process is lost, calls "
    "without a stored result fail, also those that are done."
)


class Records:
    """Divides the memory among the batches in the pool. Any thread may call it.

    Arguments:
        memory: The shared memory.
        size: Its size in bytes.
    """

    def __init__(self, memory: Memory, size: int = MEMORY_BYTES) -> None:
        self._memory = memory
        self._size = size
        self._used = 0
        #: The start of each free piece, by size.
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        #: Pieces into which a process may still write: its pid, and the size and start of a piece.
        self._retired: list[tuple[int, int, int]] = []
        # Reentrant, since a signal handler that stops the pool may run callbacks.
        self._lock = RLock()
        self._is_warned = False

    def take(self, requests: int) -> EndRecord | None:
        """Return a record for a batch of that many requests, or None if there is no room."""
        size = _piece_for(requests)
        with self._lock:
            self._reclaim()
            start = self._free[size].pop() if self._free[size] else self._extend(size)
        if start is None:
            if not self._is_warned:
                self._is_warned = True
                logger.warning(FULL)
            return None
        record = EndRecord(self._memory, start, requests)
        record.clear()
        return record

    def _extend(self, size: int) -> int | None:
        start = self._used
        if start + size > self._size:
            return None
        self._used += size
        return start

    def give_back(self, record: EndRecord) -> None:
        """Take back the record of a batch that its process has reported."""
        with self._lock:
            self._free[_piece_for(record.size)].append(record.start)

    def retire(self, record: EndRecord, pid: int) -> None:
        """Take back the record of a batch without a report when its process has ended."""
        with self._lock:
            self._retired.append((pid, _piece_for(record.size), record.start))

    def _reclaim(self) -> None:
        if not self._retired:
            return
        retired, self._retired = self._retired, []
        for pid, size, start in retired:
            if is_child(pid):
                self._retired.append((pid, size, start))
            else:
                self._free[size].append(start)


def _piece_for(requests: int) -> int:
    """Return the size of the piece of memory that has a byte for each, and one for the batch."""
    return max(SMALLEST, 1 << requests.bit_length())


_records: Records | None = None


def records() -> Records | None:
    """Return the records of this worker, or None if it shares no memory with its pool."""
    global _records
    if _records is None and (memory := shared_memory()) is not None:
        _records = Records(memory)
    return _records


class BatchRecord:
    """The record of one batch, if it has one, from when it is sent to the pool."""

    __slots__ = ("_ends", "_record", "_records")

    def __init__(self) -> None:
        self._records: Records | None = None
        self._record: EndRecord | None = None
        #: What the record has said, since its memory may have been given to another batch.
        self._ends: list[End | None] | None = None

    def open(self, requests: int) -> int | None:
        """Take a record. Return where it starts in the shared memory, or None if there is none."""
        self._records = records()
        if self._records is not None:
            self._record = self._records.take(requests)
        return None if self._record is None else self._record.start

    def ends(self) -> list[End | None] | None:
        """Return how each request has ended, or None if nothing is known of the batch."""
        return self._ends if self._record is None else self._record.ends()

    @property
    def has_body_ended(self) -> bool:
        """Whether the process has noted that the body has ended."""
        return self._record is not None and self._record.phase is Phase.BODY_ENDED

    def close(self) -> None:
        """Give the record back, since the pool has reported and writes no more."""
        record, self._record = self._record, None
        if record is not None and self._records is not None:
            self._records.give_back(record)

    def leave(self, pid: int | None) -> None:
        """Give the record back when this process has ended. Until then, it may write to it."""
        if self._record is None or self._records is None or pid is None:
            return
        self._ends = self._record.ends()
        self._records.retire(self._record, pid)
        self._record = None
