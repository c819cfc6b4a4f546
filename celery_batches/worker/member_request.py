"""Celery's ``Request`` as a member of a batch. Runs in the worker's main process."""

from __future__ import annotations

from typing import Any

from kombu.utils.imports import symbol_by_name

__all__ = ("Member", "member_class")


class Member:
    """Mixed into the ``Request`` of a task: the process of a batch gets each signal once.

    Celery ends a request by a signal to its process, and on a cold shutdown does so for each
    request that runs. The second SIGTERM would kill a process that cleans up after the first.
    """

    #: Who has sent which signal to the process: the ids, by signal. All members share it.
    signalled: dict[int, set[str]] | None = None

    def terminate(self, pool: Any, signal: Any = None) -> Any:
        """End this request, because it was revoked."""
        return super().terminate(_Once(self, pool), signal)  # type: ignore[misc]

    def cancel(self, pool: Any, signal: Any = None, **options: Any) -> Any:
        """End this request, because the worker stops or has lost its connection."""
        return super().cancel(_Once(self, pool), signal, **options)  # type: ignore[misc]


class _Once:
    """The pool, as a member sees it: a signal that a neighbour has sent is not sent again."""

    def __init__(self, request: Any, pool: Any) -> None:
        self._request = request
        self._pool = pool

    def terminate_job(self, pid: int, signal: int) -> None:
        signalled = self._request.signalled
        by = set() if signalled is None else signalled.setdefault(signal, set())
        # Whoever insists is heard, as in Celery.
        if not by or self._request.id in by:
            self._pool.terminate_job(pid, signal)
        by.add(self._request.id)


def member_class(request_class: Any) -> Any:
    """Return the ``Request`` class of a task, or its name, as one for members of batches."""
    base = symbol_by_name(request_class)
    if issubclass(base, Member):
        return base
    return type(base.__name__, (Member, base), {"__module__": base.__module__})
