"""Turns the exceptions of a batch into ``ExceptionInfo`` values. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry

from ..core.outcomes import UNMARKED, Ignored, Outcome, Rejected
from ..errors import UnstoredFailure, error_info, pickleable
from .endings import outcome_of

__all__ = ("BodyEnd", "ExceptionInfos", "raisable")

T = TypeVar("T")


def raisable(exc: BaseException) -> BaseException:
    """Return an exception that can be raised for a batch, instead of one that would do more.

    Celery retries, ignores or rejects a task for some exceptions, and ends the process for others.
    """
    means_more = isinstance(exc, MemoryError | Ignore | Reject | Retry)
    return exc if isinstance(exc, Exception) and not means_more else RuntimeError(repr(exc))


@dataclass(frozen=True, slots=True)
class BodyEnd:
    """How the body has ended.

    Attributes:
        retval: The value that it returned.
        error: The exception that it raised, in a form that can be pickled.
        einfo: The ``ExceptionInfo`` of this exception.
    """

    retval: Any = None
    error: BaseException | None = None
    einfo: ExceptionInfo | None = None

    @classmethod
    def of(cls, exc: BaseException) -> BodyEnd:
        """Return the end of a body that has raised this exception."""
        if isinstance(outcome_of(exc), Ignored | Rejected):
            return cls(error=exc, einfo=error_info(exc, internal=True))
        error = pickleable(exc)
        return cls(error=error, einfo=error_info(error))

    @property
    def outcome(self) -> Outcome:
        """The outcome of each request that the body has not marked."""
        return UNMARKED if self.error is None else outcome_of(self.error)


class ExceptionInfos:
    """Makes one ``ExceptionInfo`` for all requests that share an exception.

    Pickle then writes it once for the whole batch.

    Arguments:
        end: How the body has ended.
    """

    __slots__ = ("_end", "_made")

    def __init__(self, end: BodyEnd) -> None:
        self._end = end
        self._made: dict[tuple[str, int], tuple[Any, BaseException | None]] = {}

    def pickleable(self, exc: BaseException) -> BaseException:
        """Return an exception in a form that can be pickled."""
        if exc is self._end.error:
            return exc
        return self._once("pickleable", exc, lambda: pickleable(exc))

    def failure(self, exc: BaseException) -> ExceptionInfo:
        """Return the ``ExceptionInfo`` of a failed request."""
        return self._of_body(exc) or self._once("failure", exc, lambda: error_info(exc))

    def retry(self, reason: Retry, exc: BaseException | None) -> ExceptionInfo:
        """Return the ``ExceptionInfo`` of a retry, shared by all retries for the same reason."""
        error = self._end.error
        if isinstance(error, Retry) and error.exc is exc and self._end.einfo is not None:
            return self._end.einfo
        return self._once("retry", exc, lambda: error_info(reason))

    def internal(self, exc: BaseException) -> ExceptionInfo:
        """Return the ``ExceptionInfo`` of an ``Ignore`` or ``Reject``."""
        return self._of_body(exc) or error_info(exc, internal=True)

    def reported(self, exc: BaseException, einfo: ExceptionInfo) -> ExceptionInfo:
        """Return the ``ExceptionInfo`` to report to the main process.

        Celery's main process raises some exceptions again and would end, so these are replaced.
        """
        if isinstance(exc, Exception) and not isinstance(exc, MemoryError):
            return einfo
        return self._once("reported", exc, lambda: error_info(RuntimeError(repr(exc))))

    def unstored(self, exc: BaseException, einfo: ExceptionInfo) -> UnstoredFailure:
        """Return what to report of a request whose failure could not be stored."""
        reported = self.reported(exc, einfo)
        return self._once("unstored", exc, lambda: UnstoredFailure(reported))

    def _of_body(self, exc: BaseException) -> ExceptionInfo | None:
        return self._end.einfo if exc is self._end.error else None

    def _once(self, use: str, exc: BaseException | None, make: Callable[[], T]) -> T:
        key = use, id(exc)
        if key not in self._made:
            # Keeping the exception alive keeps its id unique.
            self._made[key] = make(), exc
        made: T = self._made[key][0]
        return made
