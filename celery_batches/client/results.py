"""The results of many calls, in little memory. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import Task
from celery.result import AsyncResult, ResultSet

__all__ = ("SentIds", "SentResults", "restore_results")

#: Bytes of an id that Celery has made, without its text form.
ID_BYTES = 16


class SentIds:
    """The ids of calls, in order. One that Celery would make takes 16 bytes.

    Arguments:
        task: The task of the calls.
        ignored: Whether their results are ignored.
    """

    def __init__(self, task: Task, *, ignored: bool) -> None:
        self.task = task
        self.ignored = ignored
        self._kind: type[AsyncResult] = task.app.AsyncResult
        self._packed = bytearray()
        #: By position: ids that the caller has chosen, and results that are not those of the task.
        self._others: dict[int, str | AsyncResult] = {}

    def __len__(self) -> int:
        return len(self._packed) // ID_BYTES

    def __iter__(self) -> Iterator[str | AsyncResult]:
        for position in range(len(self)):
            yield self._others.get(position) or self._unpacked(position)

    def add(self, task_id: str) -> None:
        """Add an id that ``kombu.utils.uuid`` has made."""
        self._packed += bytes.fromhex(task_id.replace("-", ""))

    def add_other(self, value: str | AsyncResult) -> None:
        """Add an id that the caller has chosen, or a result."""
        self._others[len(self)] = value
        self._packed += bytes(ID_BYTES)

    def is_usual(self, task_id: str, result: AsyncResult) -> bool:
        """Whether a result is like the one that the task makes of the id."""
        return (
            type(result) is self._kind
            and result.id == task_id
            and bool(result.ignored) == self.ignored
        )

    def _unpacked(self, position: int) -> str:
        start = position * ID_BYTES
        text = self._packed[start : start + ID_BYTES].hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class SentResults(ResultSet):  # type: ignore[misc]  # celery is not typed
    """A ``ResultSet`` that makes its results when they are first asked for."""

    def __init__(self, ids: SentIds) -> None:
        self._app = ids.task.app
        self._ids = ids

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for what `ResultSet.__init__` has not set yet.
        if name not in ("_results", "_on_full", "on_ready") or "_ids" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__init__([self._made(value) for value in self._ids], app=self._app)
        return vars(self)[name]

    def __len__(self) -> int:
        return len(self._results if "_results" in vars(self) else self._ids)

    @property
    def results(self) -> list[AsyncResult]:
        """The result of each call, in order of the calls."""
        made: list[AsyncResult] = self._results
        return made

    @results.setter
    def results(self, results: list[AsyncResult]) -> None:
        self._results = results

    def _made(self, value: str | AsyncResult) -> AsyncResult:
        if isinstance(value, str):
            value = self._ids.task.AsyncResult(value)
            value.ignored = self._ids.ignored
        return value

    def __reduce__(self) -> Any:
        return restore_results, ([result.id for result in self.results],)


def restore_results(ids: list[str]) -> ResultSet:
    """Make the results that were pickled."""
    return ResultSet([AsyncResult(task_id) for task_id in ids])
