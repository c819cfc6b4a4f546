"""Checks the values of the flush options of a batch task. Runs wherever one is defined."""

from __future__ import annotations

from datetime import timedelta
from math import isfinite
from numbers import Real
from typing import Any

from celery.exceptions import ImproperlyConfigured

from .core.rules import FLUSH_KEYS

__all__ = (
    "FLUSH_EVERY",
    "FLUSH_INTERVAL",
    "FLUSH_KEYS",
    "check_flush_every",
    "check_flush_idle",
    "check_flush_interval",
    "check_flush_keys",
    "check_flush_max_weight",
    "check_flush_weight",
    "check_idle_and_interval",
    "check_weights",
)

#: The default number of requests in a full batch.
FLUSH_EVERY = 10

#: The default number of seconds that a request waits for its batch to fill.
FLUSH_INTERVAL = 30


def check_flush_every(task_name: str, value: object) -> int:
    """Check ``flush_every`` and return it.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is not an int of at least 1.
    """
    return _check_count(task_name, "flush_every", value, "the number of requests in a full batch")


def check_flush_interval(task_name: str, value: object) -> float:
    """Check ``flush_interval`` and return it in seconds.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is not a finite number of seconds above 0, or
            a timedelta of that length.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not _is_positive(seconds):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: flush_interval is {value!r}, but it must be a number of seconds "
            f"above 0 or a datetime.timedelta: how long a request waits for its batch to fill. "
            f"Set for example flush_interval=10."
        )
    return float(seconds)


def check_flush_idle(task_name: str, value: object) -> float | None:
    """Check ``flush_idle`` and return it in seconds, or None if it is off.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither None, a finite number of seconds
            above 0, nor a timedelta of that length.
    """
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not _is_positive(seconds):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: flush_idle is {value!r}, but it must be None, a number of "
            f"seconds above 0 or a datetime.timedelta: for how long no call has come when a batch "
            f"is flushed. Set for example flush_idle=0.5."
        )
    return float(seconds)


def check_idle_and_interval(task_name: str, idle: float | None, interval: float) -> None:
    """Check that ``flush_idle`` can ever be what flushes a batch.

    Arguments:
        task_name: The name of the task.
        idle: Its valid ``flush_idle`` in seconds, or None.
        interval: Its valid ``flush_interval`` in seconds.

    Raises:
        celery.exceptions.ImproperlyConfigured: If ``flush_interval`` always comes first.
    """
    if idle is not None and idle >= interval:
        raise ImproperlyConfigured(
            f"Task {task_name!r}: flush_idle is {idle:g}, but it must be below flush_interval, "
            f"which is {interval:g}, or it has no effect. "
            f"Set for example flush_idle={interval / 10:g}."
        )


def check_flush_keys(task_name: str, value: object) -> int:
    """Check ``flush_keys`` and return it.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is not an int of at least 1.
    """
    what = "the most keys of which calls are buffered at a time"
    return _check_count(task_name, "flush_keys", value, what)


def check_flush_weight(task_name: str, value: object) -> None:
    """Check ``flush_weight``.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither None, a callable nor ``"bytes"``.
    """
    if value is None or callable(value) or value == "bytes":
        return
    raise ImproperlyConfigured(
        f"Task {task_name!r}: flush_weight is {value!r}, but it must be a callable that takes a "
        f"request and returns its weight, or 'bytes' for the size of its message. "
        f"Set for example flush_weight='bytes'."
    )


def check_flush_max_weight(task_name: str, value: object) -> float | None:
    """Check ``flush_max_weight`` and return it, or None if it is off.

    Raises:
        celery.exceptions.ImproperlyConfigured: If it is neither None nor a finite number above 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_positive(value):
        raise ImproperlyConfigured(
            f"Task {task_name!r}: flush_max_weight is {value!r}, but it must be None or a number "
            f"above 0: the most weight of a batch. Set for example flush_max_weight=1_000_000."
        )
    return float(value)


def check_weights(task_name: str, weight: object, max_weight: object) -> None:
    """Check that ``flush_weight`` and ``flush_max_weight`` are set together.

    Raises:
        celery.exceptions.ImproperlyConfigured: If only one of them is set.
    """
    if (weight is None) != (max_weight is None):
        given, other = "flush_weight", "flush_max_weight=1_000_000"
        value = weight
        if weight is None:
            given, other, value = "flush_max_weight", "flush_weight='bytes'", max_weight
        raise ImproperlyConfigured(
            f"Task {task_name!r}: {given} is {value!r}, but it has no effect alone. "
            f"Set for example {other} as well."
        )


def _check_count(task_name: str, option: str, value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ImproperlyConfigured(
            f"Task {task_name!r}: {option} is {value!r}, but it must be an int of at least 1: "
            f"{what}. Set for example {option}=100."
        )
    return value


def _is_positive(number: Any) -> bool:
    return bool(number > 0) and isfinite(number)
