"""Checks the body and the names of the options of a batch task. Runs wherever one is defined."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from inspect import getattr_static, unwrap
from typing import Any

from celery.exceptions import ImproperlyConfigured

from .compat import is_pydantic
from .core.signatures import is_async, is_generator, takes
from .options import OPTIONS

__all__ = (
    "REMOVED",
    "check_body",
    "check_names",
    "check_removed",
    "has_async_body",
    "may_be_async",
)

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
    # Celery sets this for a decorated function. Then each attribute is an option.
    is_decorated = bool(vars(task).get("_decorated"))
    for option, value in vars(task).items():
        if option in OPTIONS or callable(value) or hasattr(type(value), "__get__"):
            continue
        meant = get_close_matches(option, OPTIONS, n=1, cutoff=ALIKE)
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
        celery.exceptions.ImproperlyConfigured: If the body is a generator function, takes no
            positional argument, or has ``pydantic=True``.
    """
    body = getattr_static(task, "run")
    # Celery makes a body without `bind=True` a static method.
    taken = 1 if isinstance(body, staticmethod) else 2
    reason = _why_refused(_run_of(task), taken)
    if reason:
        raise ImproperlyConfigured(f"Task {task_name!r}: {reason}")


def has_async_body(task: type) -> bool:
    """Whether the body of a task, or its ``__call__``, is an async function."""
    return is_async(_run_of(task)) or is_async(getattr_static(task, "__call__"))


def may_be_async(task: type) -> bool:
    """Whether the body of a task is an async function, or a ``functools.wraps`` wrapper of one."""
    return is_async(unwrap(_run_of(task)))


def _run_of(task: type) -> Callable[..., Any]:
    body = getattr_static(task, "run")
    run: Callable[..., Any] = getattr(body, "__func__", body)
    return run


def _why_refused(body: Callable[..., Any], taken: int) -> str | None:
    if is_pydantic(body):
        return (
            "pydantic=True validates arguments by the signature of the body, but the body of a "
            "batch task gets a list of requests. Leave it out, and validate the arguments of each "
            "request in the body, for example by Model.model_validate(request.kwargs)."
        )
    if is_generator(body):
        return (
            "its body is a generator function, of which a call runs nothing. Take yield out of the "
            "body, and call request.mark_as_done(result) to give a request its result."
        )
    if not takes(body, taken):
        given = "requests" if taken == 1 else "self, requests"
        how = "async def" if is_async(body) else "def"
        return (
            f"its body takes no argument for the requests of a batch. Define it as "
            f"{how} {getattr(body, '__name__', 'body')}({given})."
        )
    return None
