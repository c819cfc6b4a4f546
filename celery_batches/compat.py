"""Where the supported versions of Celery differ. Runs anywhere."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from celery import Task
from celery.result import EagerResult

try:
    from celery.utils.quorum_queues import detect_quorum_queues
except ImportError:  # Celery 5.4 and older.
    detect_quorum_queues = None

__all__ = (
    "TIMEOUT_IS_FAILURE",
    "counts_for_new_consumers",
    "eager_result",
    "is_pydantic",
    "publish",
)

#: In Celery 5.7 and newer, ``Request.on_timeout`` also runs what a failure runs: handlers, the
#: signal, and the event.
TIMEOUT_IS_FAILURE = hasattr(Task, "acks_on_timeout")

#: Celery 5.4 and newer let the result of an eager call know the name of its task.
_NAMED_RESULTS = "name" in signature(EagerResult.__init__).parameters


def eager_result(
    task_id: str, value: Any, state: str, *, traceback: str | None, name: str
) -> EagerResult:
    """Return the result of a call that was run eagerly."""
    if _NAMED_RESULTS:
        return EagerResult(task_id, value, state, traceback=traceback, name=name)
    return EagerResult(task_id, value, state, traceback=traceback)


def publish(app: Any, send: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Send a callback from the pool.

    Celery 5.7 and newer do not let a broker that is away hold up the pool for long.
    """
    patiently = getattr(app.amqp, "_retry_publish", None)
    return send(*args, **options) if patiently is None else patiently(send, *args, **options)


def is_pydantic(body: Any) -> bool:
    """Whether Celery (5.5 and newer) has wrapped the body of a task for ``pydantic=True``."""
    module = getattr(body, "__globals__", {}).get("__name__")
    return hasattr(body, "__wrapped__") and bool(module == "celery.app.base")


def counts_for_new_consumers(consumer: Any) -> bool:
    """Whether Celery has found that a prefetch count is for new consumers of a channel only.

    That is so with RabbitMQ's quorum queues, which Celery 5.5 and newer detect.
    """
    is_global = getattr(consumer, "qos_global", None)
    if is_global is not None:  # Celery 5.7 and newer keep what they have found out.
        return not is_global
    if detect_quorum_queues is None:
        return False
    wanted = consumer.app.conf.worker_detect_quorum_queues
    return bool(wanted and detect_quorum_queues(consumer.app, "amqp")[0])
