"""Checks the values of the options of a batch task. Runs wherever one is defined."""

from __future__ import annotations

from datetime import timedelta
from math import isfinite
from numbers import Real
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.utils.time import rate

__all__ = (
    "FLUSH_EVERY",
    "FLUSH_INTERVAL",
    "OPTIONS",
    "check_bisect_on_failure",
    "check_flush_every",
    "check_flush_interval",
    "check_key",
    "check_rate_limit",
    "check_return_results",
    "check_unique_keep",
    "is_computed",
)

#: The default number of requests in a full batch.
FLUSH_EVERY = 10

#: The default number of seconds that a request waits for its batch to fill.
FLUSH_INTERVAL = 30

#: The options of batches.
OPTIONS = frozenset(
    (
        *("flush_every", "flush_interval", "return_results", "bisect_on_failure"),
        *("unique_key", "unique_keep"),
    )
)


def is_computed(value: object) -> bool:
    """Whether an option of a class is a property or a similar descriptor."""
    return hasattr(type(value), "__get__") and not callable(value)


def check_rate_limit(task_name: str, value: object) -> None:
    """Refuse a ``rate_limit`` that Celery cannot read, which would stop the worker at its start.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither None, a number, nor a string such
            as ``"10/s"``, ``"100/m"`` or ``"1000/h"``.
    """
    try:
        is_rate = _is_rate(rate(value))
    except (TypeError, ValueError, LookupError):
        is_rate = False
    if not is_rate:
        raise ImproperlyConfigured(
            f"Task {task_name!r}: rate_limit is {value!r}, but it must be a number of batches a "
            f'second or a string such as "10/s", "100/m" or "1000/h". Set for example '
            f'rate_limit="100/m".'
        )


def check_flush_every(task_name: str, value: object) -> int:
    """Check ``flush_every`` and return it.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is not an int of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ImproperlyConfigured(
            f"Task {task_name!r}: flush_every is {value!r}, but it must be an int of at least 1: "
            f"the number of requests in a full batch. Set for example flush_every=100."
        )
    return value


def check_flush_interval(task_name: str, value: object) -> float:
    """Check ``flush_interval`` and return it in seconds.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is not a finite number of seconds above 0, or
            a timedelta of that length.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not _is_wait(seconds):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: flush_interval is {value!r}, but it must be a number of seconds "
            f"above 0 or a datetime.timedelta: how long a request waits for its batch to fill. "
            f"Set for example flush_interval=10."
        )
    return float(seconds)


def check_return_results(task_name: str, value: object) -> bool:
    """Check ``return_results`` and return it.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is not a bool.
    """
    if not isinstance(value, bool):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: return_results is {value!r}, but it must be True or False: "
            f"whether the body returns the result of each request. "
            f"Set for example return_results=True."
        )
    return value


def check_key(task_name: str, option: str, value: object) -> None:
    """Check an option that says what the key of a request is.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither None, a callable nor the name of a
            keyword argument.
    """
    if value is None or callable(value) or (isinstance(value, str) and value.isidentifier()):
        return
    raise ImproperlyConfigured(
        f"Task {task_name!r}: {option} is {value!r}, but it must be a callable that takes a "
        f"request and returns its key, or the name of a keyword argument of the calls. "
        f"Set for example {option}='user_id'."
    )


def check_unique_keep(task_name: str, value: object) -> None:
    """Check ``unique_keep``.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither ``"last"`` nor ``"first"``.
    """
    if value not in ("last", "first"):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: unique_keep is {value!r}, but it must be 'last' or 'first': "
            f"which of the requests with the same key the body gets. "
            f"Set for example unique_keep='first'."
        )


def check_bisect_on_failure(task_name: str, value: object) -> None:
    """Check ``bisect_on_failure``.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither a bool, an exception class nor a
            tuple of exception classes.
    """
    classes = value if isinstance(value, tuple) else (value,)
    if isinstance(value, bool) or all(map(_is_exception_class, classes)):
        return
    raise ImproperlyConfigured(
        f"Task {task_name!r}: bisect_on_failure is {value!r}, but it must be True, False, a "
        f"subclass of Exception or a tuple of them: for which exceptions the body runs again in "
        f"halves. Set for example bisect_on_failure=ValueError."
    )


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


# Any: type checkers know no order of `Real` and `int`.
def _is_rate(batches: Any) -> bool:
    if not isinstance(batches, int | float):
        return False
    return batches >= 0 and isfinite(batches)


def _is_wait(seconds: Any) -> bool:
    return bool(seconds > 0) and isfinite(seconds)
