"""Checks the options and the body of a batch task. Runs wherever a task is defined."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from difflib import get_close_matches
from inspect import (
    Parameter,
    getattr_static,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
)
from math import isfinite
from numbers import Real
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.utils.time import rate

from .compat import is_pydantic

__all__ = (
    "FLUSH_EVERY",
    "FLUSH_INTERVAL",
    "check_bisect_on_failure",
    "check_body",
    "check_flush_every",
    "check_flush_interval",
    "check_names",
    "check_rate_limit",
    "check_removed",
    "check_return_results",
    "is_computed",
)

#: The default number of requests in a full batch.
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

#: What other batchers call these options. Celery ignores an unknown option without a warning.
OTHER_NAMES = {
    "batch_size": "flush_every",
    "max_batch_size": "flush_every",
    "flush_count": "flush_every",
    "flush_size": "flush_every",
    "batch_interval": "flush_interval",
    "batch_timeout": "flush_interval",
    "flush_after": "flush_interval",
    "flush_seconds": "flush_interval",
    "flush_timeout": "flush_interval",
    "max_wait": "flush_interval",
}

#: How alike a misspelled option is to the right one, from 0 to 1.
ALIKE = 0.9


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


def check_names(task_name: str, task: type) -> None:
    """Refuse an option whose name is nearly that of an option of batches.

    A class that is written by hand may have attributes of its own, so there only misspelled names
    are refused.

    Raises:
        celery.exceptions.ImproperlyConfigured: If the class itself has such an attribute.
    """
    names = {"flush_every", "flush_interval", "return_results", "bisect_on_failure"}
    # Celery sets this for a decorated function. Then each attribute is an option.
    is_decorated = bool(vars(task).get("_decorated"))
    for option, value in vars(task).items():
        if option in names or callable(value) or hasattr(type(value), "__get__"):
            continue
        meant = get_close_matches(option, names, n=1, cutoff=ALIKE)
        if not meant and is_decorated and option in OTHER_NAMES:
            meant = [OTHER_NAMES[option]]
        if meant:
            raise ImproperlyConfigured(
                f"Task {task_name!r}: there is no option {option}. "
                f"Set {meant[0]}={value!r} instead, if that is what you mean."
            )


def check_body(task_name: str, task: type) -> None:
    """Refuse a body that would never run, or that cannot take the list of requests.

    Raises:
        celery.exceptions.ImproperlyConfigured: If the body is a generator function or a coroutine
            function, takes no positional argument, or has ``pydantic=True``.
    """
    body = getattr_static(task, "run")
    # Celery makes a body without `bind=True` a static method.
    taken = 1 if isinstance(body, staticmethod) else 2
    reason = _why_refused(getattr(body, "__func__", body), taken)
    if reason:
        raise ImproperlyConfigured(f"Task {task_name!r}: {reason}")


def _why_refused(body: Callable[..., Any], taken: int) -> str | None:
    if is_pydantic(body):
        return (
            "pydantic=True validates arguments by the signature of the body, but the body of a "
            "batch task gets a list of requests. Leave it out, and validate the arguments of each "
            "request in the body, for example by Model.model_validate(request.kwargs)."
        )
    if iscoroutinefunction(body):
        return (
            "its body is an async function, which nothing would await. Make the body a plain "
            "function, and call asyncio.run(work(requests)) in it."
        )
    if isgeneratorfunction(body) or isasyncgenfunction(body):
        return (
            "its body is a generator function, of which a call runs nothing. Take yield out of the "
            "body, and call request.mark_as_done(result) to give a request its result."
        )
    if not _takes(body, taken):
        given = "requests" if taken == 1 else "self, requests"
        return (
            f"its body takes no argument for the requests of a batch. Define it as "
            f"def {getattr(body, '__name__', 'body')}({given})."
        )
    return None


def _takes(body: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with that many positional arguments, as far as is known."""
    try:
        parameters = signature(body).parameters.values()
    except (TypeError, ValueError):
        return True
    kinds = [parameter.kind for parameter in parameters]
    if Parameter.VAR_POSITIONAL in kinds:
        return True
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds) >= count


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
