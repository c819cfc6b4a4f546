"""Checks the options of a batch task. Runs wherever one is defined."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.utils.time import rate

from .flush_values import (
    check_flush_every,
    check_flush_idle,
    check_flush_interval,
    check_flush_keys,
    check_flush_max_weight,
    check_flush_weight,
    check_idle_and_interval,
    check_weights,
)

__all__ = (
    "OPTIONS",
    "check_bisect_on_failure",
    "check_key",
    "check_options",
    "check_rate_limit",
    "check_return_results",
    "check_unique_keep",
    "is_computed",
)

#: The options of batches.
OPTIONS = frozenset(
    (
        *("flush_every", "flush_interval", "flush_idle", "flush_key", "flush_keys"),
        *("flush_weight", "flush_max_weight", "return_results", "bisect_on_failure"),
        *("unique_key", "unique_keep"),
    )
)


def check_options(task_name: str, task: Any) -> None:
    """Check all options of a task class. Those that it computes are checked when they are read.

    Raises:
        celery.exceptions.ImproperlyConfigured: If one of them, or two together, cannot work.
    """
    for option, check in CHECKS.items():
        value = getattr(task, option)
        if not is_computed(value):
            check(task_name, value=value)
    if not vars(task).get("abstract"):
        _check_together(task_name, task)


def _check_together(task_name: str, task: Any) -> None:
    """Check the options that have an effect together only. Those of a base class may be a part."""
    interval, idle = task.flush_interval, task.flush_idle
    if not (is_computed(interval) or is_computed(idle)):
        seconds = check_flush_interval(task_name, interval)
        check_idle_and_interval(task_name, check_flush_idle(task_name, idle), seconds)
    weight, max_weight = task.flush_weight, task.flush_max_weight
    if not (is_computed(weight) or is_computed(max_weight)):
        check_weights(task_name, weight, max_weight)


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


#: The check of each option.
CHECKS: dict[str, Callable[..., object]] = {
    "flush_every": check_flush_every,
    "flush_interval": check_flush_interval,
    "flush_idle": check_flush_idle,
    "flush_key": partial(check_key, option="flush_key"),
    "flush_keys": check_flush_keys,
    "flush_weight": check_flush_weight,
    "flush_max_weight": check_flush_max_weight,
    "rate_limit": check_rate_limit,
    "return_results": check_return_results,
    "bisect_on_failure": check_bisect_on_failure,
    "unique_key": partial(check_key, option="unique_key"),
    "unique_keep": check_unique_keep,
}
