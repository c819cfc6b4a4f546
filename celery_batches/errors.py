"""Makes the ``ExceptionInfo`` of an exception, as Celery's callbacks take it. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception

__all__ = ("UnstoredFailure", "call_live", "error_info", "exception_of", "pickleable")

T = TypeVar("T")


class UnstoredFailure(ExceptionInfo):  # type: ignore[misc]  # billiard is not typed
    """The failure of a request that the pool could not store in the result backend.

    Arguments:
        einfo: The ``ExceptionInfo`` of its exception.
    """

    def __init__(self, einfo: ExceptionInfo) -> None:
        self.__dict__.update(einfo.__dict__)


def pickleable(exc: BaseException) -> BaseException:
    """Return the exception in a form that can be pickled and serialized."""
    copy: BaseException = get_pickleable_exception(exc)
    if copy.__traceback__ is None:
        copy.__traceback__ = exc.__traceback__
    return copy


def error_info(exc: BaseException, *, internal: bool = False) -> ExceptionInfo:
    """Return the ``ExceptionInfo`` of an exception, even if it was never raised.

    Arguments:
        exc: The exception.
        internal: Whether it controls the task, as ``Reject`` does, and is not an error.
    """
    if exc.__traceback__ is not None:
        kind = get_pickleable_etype(type(exc))
        return ExceptionInfo((kind, exc, exc.__traceback__), internal=internal)
    return call_live(exc, lambda: _raised_info(exc, internal=internal))


def _raised_info(exc: BaseException, *, internal: bool) -> ExceptionInfo:
    return ExceptionInfo((type(exc), exc, exc.__traceback__), internal=internal)


def call_live(exc: BaseException, function: Callable[[], T]) -> T:
    """Call a function while this exception is being handled.

    Error reporters call ``sys.exc_info()`` in handlers and signals. In an ordinary task, it returns
    the exception that the task has raised.
    """
    traceback, context = exc.__traceback__, exc.__context__
    try:
        raise exc
    except BaseException:
        exc.__context__ = context
        if traceback is not None:
            # The traceback must show the origin, and not this frame.
            exc.__traceback__ = traceback
        return function()
    finally:
        # The traceback of this frame would keep its local variables alive.
        exc.__traceback__ = traceback


def exception_of(einfo: ExceptionInfo) -> BaseException:
    """Return the exception of an ``ExceptionInfo``, also of one that was pickled."""
    exc: BaseException = einfo.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
