"""Sends what continues when a request is done: its link, its chain. Runs in the pool."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery import canvas

from ..compat import publish
from ..request import SimpleRequest, slot_of
from .context import acting_as

__all__ = (
    "has_continuations",
    "is_awaited",
    "parent_context",
    "send_continuations",
    "sends_on_success",
)


def sends_on_success(request: SimpleRequest) -> bool:
    """Whether a task is sent when the request is done: its link, or the next of its chain."""
    get = (request.request_dict or {}).get
    return bool(get("callbacks") or get("chain"))


def is_awaited(request: SimpleRequest) -> bool:
    """Whether a link, a chain or a chord continues when the request is done."""
    return sends_on_success(request) or bool((request.request_dict or {}).get("chord"))


def has_continuations(request: SimpleRequest) -> bool:
    """Whether a task continues when the request has ended, in whichever way."""
    return is_awaited(request) or bool((request.request_dict or {}).get("errbacks"))


def parent_context(task: Any, request: SimpleRequest) -> AbstractContextManager[Any]:
    """Push the request's context, so that continuations inherit its id as ``parent_id``."""
    return acting_as(task, request) if has_continuations(request) else nullcontext()


def send_continuations(task: Any, request: SimpleRequest, value: Any) -> None:
    """Send the callbacks of a done request, and the next task of its chain.

    Before the result is stored, so that this knows the request's children (as in
    ``celery.app.trace``). The request must be the current one of the task.
    """
    callbacks, chain = request.callbacks, request.chain
    if not callbacks and not chain:
        return
    app = task.app
    options = {
        "parent_id": request.id,
        "root_id": request.root_id or request.id,
        "priority": _inherited_priority(app, request),
    }
    signatures = [canvas.signature(callback, app=app) for callback in callbacks or ()]
    # A group leaves a trail of its own: it is sent as it is.
    groups = [sig for sig in signatures if isinstance(sig, canvas.group)]
    others = [sig for sig in signatures if not isinstance(sig, canvas.group)]
    if len(others) > 1:
        others = [canvas.group(others, app=app)]
    for sig in [*groups, *others]:
        publish(app, sig.apply_async, (value,), **options)
    if chain:
        following = canvas.signature(chain[-1], app=app)
        publish(app, following.apply_async, (value,), chain=chain[:-1], **options)
    slot_of(request).children = task.request.children


def _inherited_priority(app: Any, request: SimpleRequest) -> Any:
    if not app.conf.task_inherit_parent_priority:
        return None
    return (request.delivery_info or {}).get("priority")
