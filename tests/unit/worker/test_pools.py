"""A worker whose pool cannot run a task does not start."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import Any

import pytest
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured

from celery_batches import Batches
from kit.consumer import FakeConsumer
from kit.tasks import do_nothing, make_task


async def async_body(requests: Any) -> None: ...


@wraps(async_body)
def synchronous(requests: Any) -> None:
    asyncio.run(async_body(requests))


class AsyncCall(Batches):
    abstract = True

    async def __call__(self, *args: Any, **kwargs: Any) -> None: ...


def start(app: Any, task: Batches, *, is_green: bool = True) -> Any:
    """What the worker does with a task when it starts."""
    consumer = FakeConsumer(app)
    pool = type("TaskPool", (BasePool,), {"is_green": is_green, "__module__": "any.gevent"})
    consumer.pool = pool(limit=1)
    consumer.strategies[task.name] = task.start_strategy(app, consumer)
    return consumer


@pytest.mark.parametrize("what", ["body", "call"])
def test_greenlets_refuse_an_async_body(app: Any, what: str) -> None:
    """The error names the task, the pool, and what to do."""
    base = Batches if what == "body" else AsyncCall
    task = make_task(app, async_body if what == "body" else do_nothing, base=base)
    with pytest.raises(ImproperlyConfigured) as error:
        start(app, task)
    assert str(error.value) == (
        "Task 'unit.click': its body is async, and the pool 'gevent' cannot run it. Start the "
        "worker with --pool=threads, prefork or solo, or make the body a plain function."
    )


def test_other_bodies_and_pools_are_not_refused(app: Any) -> None:
    """Nor is a plain function that runs an async one itself."""
    start(app, make_task(app))
    start(app, make_task(app, synchronous, name="unit.synchronous"))
    start(app, make_task(app, async_body, name="unit.async"), is_green=False)


def test_a_running_worker_is_not_stopped(app: Any) -> None:
    """When its tasks are loaded again. The batches of such a task fail."""
    task = make_task(app)
    consumer = start(app, task)
    del app.tasks[task.name]
    make_task(app, async_body).start_strategy(app, consumer)
