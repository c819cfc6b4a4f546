"""What a process of the pool notes of a batch, for the case that it is lost. Pure. Used in both.

The record of a batch is a piece of memory that the main process shares with its pool. It has one
byte for the phase of the batch, and then one byte for each request: how it has ended, or 0. A
single byte is written at once, so that whoever reads the record finds it whole.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol, overload

__all__ = ("End", "EndRecord", "Memory", "Phase")


class Memory(Protocol):
    """The methods of ``mmap.mmap`` that a record uses. A ``bytearray`` has them too."""

    @overload
    def __getitem__(self, key: int, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...
    @overload
    def __setitem__(self, key: int, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: bytes, /) -> None: ...


class Phase(IntEnum):
    """How far a batch has come."""

    #: No process has noted anything: it has not begun, or does not share the memory.
    UNKNOWN = 0
    #: The body may run.
    BEGUN = 1
    #: The body has ended, and the outcomes are applied.
    BODY_ENDED = 2


class End(IntEnum):
    """How a request has ended: nobody has to hear more of it, but the worker's main process."""

    DONE = 1
    FAILED = 2
    RETRIED = 3
    REJECTED = 4
    REQUEUED = 5
    IGNORED = 6


class EndRecord:
    """The record of one batch.

    Arguments:
        memory: The shared memory.
        start: Where in it the record starts.
        size: The number of requests.
    """

    __slots__ = ("_memory", "size", "start")

    def __init__(self, memory: Memory, start: int, size: int) -> None:
        self._memory = memory
        self.start = start
        self.size = size

    def clear(self) -> None:
        """Forget the batch that had this piece of memory before."""
        self._memory[self.start : self.start + 1 + self.size] = bytes(1 + self.size)

    def begin(self) -> None:
        """Note that a process has begun with the batch. It may not be the first one."""
        self.clear()
        self._memory[self.start] = Phase.BEGUN

    def end_body(self) -> None:
        """Note that the body has ended."""
        self._memory[self.start] = Phase.BODY_ENDED

    def note(self, index: int, end: int) -> None:
        """Note that the request of this index has ended."""
        self._memory[self.start + 1 + index] = end

    def note_from(self, index: int, ends: bytes) -> None:
        """Note how the requests from this index on have ended, with 0 for those that have not."""
        start = self.start + 1 + index
        self._memory[start : start + len(ends)] = ends

    @property
    def phase(self) -> Phase:
        """How far the batch has come."""
        return Phase(self._memory[self.start])

    def ends(self) -> list[End | None] | None:
        """Return how each request has ended, or None if nothing is known of the batch."""
        if self.phase is Phase.UNKNOWN:
            return None
        noted = self._memory[self.start + 1 : self.start + 1 + self.size]
        return [End(byte) if byte else None for byte in noted]
