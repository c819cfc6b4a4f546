"""Finds the key of a request. Pure. Used in the pool."""

from __future__ import annotations

from typing import Any

from .signatures import required

__all__ = ("key_of",)


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
        if how not in request.kwargs:
            raise LookupError(
                f"Task {task.name!r}: {option} is {how!r}, but the call has no such keyword "
                f"argument. Call the task as {task.name}.delay({how}=...)"
            )
        return request.kwargs[how]
    function = getattr(how, "__func__", None)
    # Celery makes an option an attribute of a class, and so a function a method.
    if function is not None and required(function) < 2:
        return function(request)
    return how(request)
