"""Refuses pools that cannot run a task. Runs in the worker's main process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.exceptions import ImproperlyConfigured

from ..definition import has_async_body

if TYPE_CHECKING:
    from celery.concurrency.base import BasePool

    from ..task import Batches

__all__ = ("check_pool",)


def check_pool(task: Batches, pool: BasePool) -> None:
    """Refuse an async body in a pool of greenlets.

    All greenlets share one thread, in which only one event loop can run.

    Raises:
        celery.exceptions.ImproperlyConfigured: If the pool cannot run the body.
    """
    if getattr(pool, "is_green", False) and has_async_body(type(task)):
        name = type(pool).__module__.rpartition(".")[2]
        raise ImproperlyConfigured(
            f"Task {task.name!r}: its body is async, and the pool {name!r} cannot run it. Start "
            f"the worker with --pool=threads, prefork or solo, or make the body a plain function."
        )
