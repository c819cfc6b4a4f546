"""Makes the ``ExceptionInfo`` of an exception, as Celery's callbacks take it. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception

__all__ = ("call_live", "error_info", "exception_of", "pickleable")

T = TypeVar("T")


def pickleable(exc: BaseException) -> BaseException:
    """Return the exception in a form that the result backend and the main process can take."""
    copy: BaseException = get_pickleable_exception(exc)
    if copy.__traceback__ is None:
        copy.__traceback__ = exc.__traceback__
    return copy


def error_info(exc: BaseException, *, internal: bool = False) -> ExceptionInfo:
    """Return the ``ExceptionInfo`` of an exception, even if it was never raised.

    Arguments:
        exc: The exception.
        internal: Whether it is a decision about the task, such as ``Reject``, not an error in it.
    """
    if exc.__traceback__ is not None:
        kind = get_pickleable_etype(type(exc))
        return ExceptionInfo((kind, exc, exc.__traceback__), internal=internal)
    return call_live(exc, lambda: _raised_info(exc, internal=internal))


def _raised_info(exc: BaseException, *, internal: bool) -> ExceptionInfo:
    return ExceptionInfo((type(exc), exc, exc.__traceback__), internal=internal)


def call_live(exc: BaseException, function: Callable[[], T]) -> T:
    """Call a function while this exception is being handled.

    Error reporters call ``sys.exc_info()`` in handlers and signals. In an ordinary task they find
    the exception there that the task has raised.
    """
    traceback, context = exc.__traceback__, exc.__context__
    try:
        raise exc
    except BaseException:
        exc.__context__ = context
        if traceback is not None:
            # Where it came from counts, not where it is raised again.
            exc.__traceback__ = traceback
        return function()
    finally:
        # A kept traceback keeps the local variables of each of its frames.
        exc.__traceback__ = traceback


def exception_of(einfo: ExceptionInfo) -> BaseException:
    """Return the exception of an ``ExceptionInfo``, whether it was pickled or not."""
    exc: BaseException = einfo.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
