"""The differences between the supported versions of Celery. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.result import EagerResult

try:
    from celery.utils.quorum_queues import detect_quorum_queues
except ImportError:  # Celery 5.4 and older.
    detect_quorum_queues = None

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer

__all__ = (
    "TIMEOUT_IS_FAILURE",
    "counts_parts_once",
    "eager_result",
    "has_prefetch_per_consumer",
    "is_pydantic",
    "publish",
    "repr_levels",
)

#: In Celery 5.7 and newer, ``Request.on_timeout`` also calls handlers and sends the signal and the
#: event of a failure.
TIMEOUT_IS_FAILURE = hasattr(Task, "acks_on_timeout")

#: In Celery 5.4 and newer, the result of an eager call has the name of its task.
_NAMED_RESULTS = "name" in signature(EagerResult.__init__).parameters


def counts_parts_once(backend: Any) -> bool:
    """Whether a result backend counts a chord part once, however often it is told of the part.

    This is so in Redis with Celery 5.7 and newer.
    """
    return hasattr(type(backend), "_chord_part_return_script")


def eager_result(
    task_id: str, value: Any, state: str, *, traceback: str | None, name: str
) -> EagerResult:
    """Make the result of a call that ran eagerly."""
    if _NAMED_RESULTS:
        return EagerResult(task_id, value, state, traceback=traceback, name=name)
    return EagerResult(task_id, value, state, traceback=traceback)


def publish(app: Celery, send: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Publish a continuation from the pool.

    Celery 5.7 and newer limit how long the pool waits for a broker that cannot be reached.
    """
    with_limit = getattr(app.amqp, "_retry_publish", None)
    return send(*args, **options) if with_limit is None else with_limit(send, *args, **options)


def is_pydantic(body: Callable[..., Any]) -> bool:
    """Whether Celery (5.5 and newer) has wrapped the body of a task for ``pydantic=True``."""
    module = getattr(body, "__globals__", {}).get("__name__")
    return hasattr(body, "__wrapped__") and bool(module == "celery.app.base")


def has_prefetch_per_consumer(consumer: Consumer) -> bool:
    """Whether a prefetch count applies only to consumers that start after it.

    This is so for RabbitMQ's quorum queues, which Celery 5.5 and newer detect.
    """
    is_global = getattr(consumer, "qos_global", None)
    if is_global is not None:  # Celery 5.7 and newer keep the result of their detection.
        return not is_global
    if detect_quorum_queues is None:
        return False
    is_enabled = consumer.app.conf.worker_detect_quorum_queues
    return bool(is_enabled and detect_quorum_queues(consumer.app, "amqp")[0])


def repr_levels(app: Celery) -> int:
    """Return how deep the text of arguments goes that a message has. Celery 5.7 has a setting."""
    return int(app.conf.get("task_repr_maxlevels", 3))
