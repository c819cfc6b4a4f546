"""Checks the options and the body of a batch task. Runs wherever a task is defined."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from math import isfinite
from numbers import Real
from typing import Any

from celery.exceptions import ImproperlyConfigured

from .compat import is_pydantic

__all__ = (
    "FLUSH_EVERY",
    "FLUSH_INTERVAL",
    "check_body",
    "check_flush_every",
    "check_flush_interval",
    "check_removed",
    "is_computed",
)

#: The number of requests in a full batch, unless the task says otherwise.
FLUSH_EVERY = 10

#: The default number of seconds that a request waits for its batch to fill.
FLUSH_INTERVAL = 30

#: Options that Celery ignores without a warning since 4.0, with their replacements.
REMOVED = {
    "send_error_emails": "use on_failure() or the signal task_failure to send e-mail",
    "error_whitelist": "use throws=(KeyError,) to keep expected exceptions out of the error log",
    "accept_magic_kwargs": "use bind=True, and self.request in the body",
    "execute": "override flush() to see each batch before it goes to the pool",
    "get_logger": "use celery.utils.log.get_task_logger(__name__)",
}


def is_computed(value: object) -> bool:
    """Whether an option of a class is a property or a similar descriptor."""
    return hasattr(type(value), "__get__") and not callable(value)


def check_removed(task: type) -> None:
    """Refuse options that Celery has removed, since they would have no effect.

    Raises:
        celery.exceptions.ImproperlyConfigured: If the task has such an option.
    """
    for option, instead in REMOVED.items():
        if hasattr(task, option):
            name = getattr(task, "name", None) or f"{task.__module__}.{task.__qualname__}"
            raise ImproperlyConfigured(
                f"Task {name!r}: Celery has no {option} since 4.0. Instead, {instead}."
            )


def check_body(task_name: str, body: Callable[..., Any]) -> None:
    """Refuse a body that Celery has wrapped to validate its arguments.

    Raises:
        celery.exceptions.ImproperlyConfigured: If the task has ``pydantic=True``.
    """
    if is_pydantic(body):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: pydantic=True validates arguments by the signature of the body, "
            f"but the body of a batch task gets a list of requests. Leave it out, and validate the "
            f"arguments of each request in the body, for example by "
            f"Model.model_validate(request.kwargs)."
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


def _is_wait(seconds: Any) -> bool:  # Any: type checkers know no order of `Real` and `int`.
    return bool(seconds > 0) and isfinite(seconds)
