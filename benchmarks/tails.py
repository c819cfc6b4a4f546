"""Reads a file of records while others append to it."""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Any

__all__ = ("Tail",)


class Tail:
    """The records of a file, in order. What was read once is not read again.

    Arguments:
        path: The file; it need not be there yet.
        record: How a record is packed.
    """

    def __init__(self, path: Path, record: Struct) -> None:
        self._path = path
        self._record = record
        self._read = 0

    def new(self) -> list[tuple[Any, ...]]:
        """The records that have come since."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: len(data) - len(data) % self._record.size]
        self._read += len(whole)
        return list(self._record.iter_unpack(whole))
