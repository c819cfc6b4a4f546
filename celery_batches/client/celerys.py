"""Whether Celery sends calls as it is known to. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

from celery import Celery, Task, signals
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from kombu import Producer

from ..core.signatures import module_of

__all__ = (
    "own_message_way",
    "own_sending_way",
    "signals_after_publishing",
    "signals_before_publishing",
)

#: Options whose meaning depends on the time of the call.
TIMES = frozenset(("countdown", "eta", "expires"))

#: Options with which Celery calls code of the caller.
UNKNOWN = frozenset(("router", "result_cls"))

#: Where backends define an ``on_task_call`` that messages do not depend on: Redis subscribes to the
#: result, which it does anyway when somebody waits for it.
KNOWN_BACKENDS = frozenset(("celery.backends.base", "celery.backends.redis"))


def own_sending_way(task: Task, producer: Producer | None) -> bool:
    """Whether ``apply_async`` makes a message and gives it to the producer that it is given.

    Tools may wrap Celery's methods. A subclass that overrides them may do anything.

    Arguments:
        task: The task.
        producer: The producer of the caller, or None.
    """
    app = task.app
    return (
        type(task).apply_async is Task.apply_async
        and "apply_async" not in vars(task)
        and type(app).send_task is Celery.send_task
        and "send_task" not in vars(app)
        and type(app.amqp) is AMQP
        and app.amqp.Producer is Producer
        and (producer is None or type(producer) is Producer)
    )


def signals_before_publishing() -> bool:
    """Whether somebody is notified before a message is published, and may change it."""
    return bool(signals.before_task_publish.receivers)


def signals_after_publishing() -> bool:
    """Whether somebody is notified after a message is published, which is after each chunk."""
    return bool(signals.after_task_publish.receivers or signals.task_sent.receivers)


def own_message_way(task: Task, options: Mapping[str, Any]) -> bool:
    """Whether messages of a task differ only in ids, arguments and the text of the arguments.

    Arguments:
        task: The task.
        options: The options of all calls.
    """
    app = task.app
    methods = (Task.apply_async, Celery.send_task, AMQP.as_task_v2)
    return (
        all(isinstance(method, FunctionType) for method in methods)
        and all(module_of(method).startswith("celery.app.") for method in methods)
        and app.conf.task_protocol == 2
        and getattr(app.amqp.create_task_message, "__func__", None) is AMQP.as_task_v2
        and module_of(app.amqp.send_task_message) == "celery.app.amqp"
        and type(task).shadow_name is Task.shadow_name
        and not app.conf.task_send_sent_event
        and type(app.amqp.router) is Router
        and all(isinstance(route, MapRoute) for route in app.amqp.router.routes)
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and not UNKNOWN & options.keys()
        and all(options.get(name, getattr(task, name, None)) is None for name in TIMES)
        and module_of(app.backend.on_task_call) in KNOWN_BACKENDS
    )
