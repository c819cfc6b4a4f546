"""Is this message a call that a batch can hold? Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import InvalidTaskError

__all__ = ("check_message",)


def check_message(message: Any, body: Any) -> None:
    """Refuse a message whose arguments cannot be read, as early as that can be known.

    Celery finds some of this out in the pool, where it would be too late for the neighbours.

    Arguments:
        message: The ``kombu.Message``.
        body: Its decoded body in task protocol 1, ``None`` in protocol 2.

    Raises:
        celery.exceptions.InvalidTaskError: If there is no list of arguments and no mapping of
            keyword arguments in it.
        kombu.exceptions.DecodeError: If it cannot be decoded.
        kombu.exceptions.ContentDisallowed: If its content type is not accepted.
    """
    payload = message.payload
    if isinstance(payload, Mapping):
        # Protocol 1, or the hybrid of 1 and 2.
        args, kwargs, embed = payload.get("args", ()), payload.get("kwargs", {}), None
    elif body is None and isinstance(payload, list | tuple) and len(payload) == 3:
        args, kwargs, embed = payload
    else:
        raise InvalidTaskError(
            f"the body must be a list of args, kwargs and embed, not {_kind(payload)}"
        )
    if not isinstance(args, list | tuple):
        raise InvalidTaskError(f"Task arguments must be a list, not {_kind(args)}")
    if not isinstance(kwargs, Mapping):
        raise InvalidTaskError(f"Task keyword arguments must be a mapping, not {_kind(kwargs)}")
    if embed is not None and not isinstance(embed, Mapping):
        raise InvalidTaskError(f"What a task embeds must be a mapping, not {_kind(embed)}")


def _kind(value: Any) -> str:
    return type(value).__name__
