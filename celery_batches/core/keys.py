"""Finds the key of a request. Pure. Used in the pool and in the main process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .signatures import required

__all__ = ("keep_partials", "key_of", "keyword_argument", "plain_function")


def key_of(task: Any, option: str, request: Any) -> Any:
    """Return the key of a request, as an option of its task says.

    Arguments:
        task: The batch task.
        option: The name of the option. It is a callable or the name of a keyword argument.
        request: The request.

    Raises:
        LookupError: If the call has no such keyword argument.
        Exception: What the callable raises.
    """
    how = getattr(task, option)
    if isinstance(how, str):
        return keyword_argument(task, option, how, request)
    return plain_function(how)(request)


def keyword_argument(task: Any, option: str, name: str, request: Any) -> Any:
    """Return the keyword argument of a request that an option names.

    Raises:
        LookupError: If the call has no such keyword argument.
    """
    try:
        return request.kwargs[name]
    except LookupError:
        raise LookupError(
            f"Task {task.name!r}: {option} is {name!r}, but the call has no such keyword "
            f"argument. Call the task as {task.name}.delay({name}=...)"
        ) from None


def plain_function(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the function of an option, which takes the request only.

    Celery makes an option an attribute of a class, and so a function a method.
    """
    inner = getattr(function, "__func__", None)
    if inner is not None and required(inner) < 2:
        plain: Callable[[Any], Any] = inner
        return plain
    return function


def keep_partials(task: type, options: Iterable[str]) -> None:
    """Have options that are partials stay what they are.

    As attributes of a class they become methods in Python 3.14. Python 3.13 warns of that whenever
    one is read.
    """
    for option in options:
        value = vars(task).get(option)
        if isinstance(value, partial):
            setattr(task, option, staticmethod(value))
