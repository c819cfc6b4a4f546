"""Sends the links of a done request and the next task of its chain. Runs in the pool."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from celery import canvas

from ..compat import publish
from ..core.slot import slot_of
from ..request import SimpleRequest
from .context import acting_as

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.task import Context

    from ..task import Batches

__all__ = (
    "has_continuations",
    "is_awaited",
    "parent_context",
    "send_continuations",
    "sends_on_success",
)


def sends_on_success(request: SimpleRequest) -> bool:
    """Whether the pool sends a task when the request is done: a link or the next of its chain."""
    get = (request.request_dict or {}).get
    return bool(get("callbacks") or get("chain"))


def is_awaited(request: SimpleRequest) -> bool:
    """Whether a link, a chain or a chord continues when the request is done."""
    return sends_on_success(request) or bool((request.request_dict or {}).get("chord"))


def has_continuations(request: SimpleRequest) -> bool:
    """Whether the request has a link, a chain, a chord or an errback."""
    return is_awaited(request) or bool((request.request_dict or {}).get("errbacks"))


def parent_context(task: Batches, request: SimpleRequest) -> AbstractContextManager[Context | None]:
    """Push the request's context, so that continuations inherit its id as ``parent_id``."""
    return acting_as(task, request) if has_continuations(request) else nullcontext()


def send_continuations(task: Batches, request: SimpleRequest, value: Any) -> None:
    """Send the links of a done request, and the next task of its chain.

    Call it before the result is stored, because the stored result lists the children of the
    request, as in ``celery.app.trace``. The request must be the current one of the task.
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
    # A group records its own children, so each group is sent separately, as in Celery.
    groups = [sig for sig in signatures if isinstance(sig, canvas.group)]
    single_tasks = [sig for sig in signatures if not isinstance(sig, canvas.group)]
    if len(single_tasks) > 1:
        single_tasks = [canvas.group(single_tasks, app=app)]
    for sig in [*groups, *single_tasks]:
        publish(app, sig.apply_async, (value,), **options)
    if chain:
        next_task = canvas.signature(chain[-1], app=app)
        publish(app, next_task.apply_async, (value,), chain=chain[:-1], **options)
    slot_of(request).children = task.request.children


def _inherited_priority(app: Celery, request: SimpleRequest) -> int | None:
    if not app.conf.task_inherit_parent_priority:
        return None
    priority: int | None = (request.delivery_info or {}).get("priority")
    return priority
