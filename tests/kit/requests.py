"""The two requests that there are of each call: the worker's, and the one that the body gets."""

from __future__ import annotations

from typing import Any, cast

from celery import Celery, Task
from celery.app.task import Context
from celery.worker.request import Request
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2
from kombu import Message

from celery_batches import SimpleRequest
from celery_batches.worker.member_request import member_class
from kit.messages import protocol_2

HOSTNAME = "worker@unit"


def decode(message: Message) -> tuple[Any, dict[str, Any], bool, bool]:
    """Body, headers, decoded and utc, as Celery's strategy finds them."""
    payload = message.payload
    if isinstance(payload, dict):
        payload = dict(payload)
        convert = hybrid_to_proto2 if "args" in payload else proto1_to_proto2
        body, headers, decoded, utc = convert(message, payload)
        return body, headers, decoded, utc
    return message.body, message.headers, False, True


def worker_request(app: Celery, task: Task, message: Message, **options: Any) -> Request:
    """The request of Celery's worker for a message, as its strategy makes it.

    Arguments:
        app: The app of the worker.
        task: The task that the message calls.
        message: The message.
        options: Those of Celery's ``Request``; ``cls`` for another class.
    """
    body, headers, decoded, utc = decode(message)
    cls = cast(type[Request], member_class(options.pop("cls", Request)))
    options.setdefault("on_ack", message.ack_log_error)
    options.setdefault("on_reject", message.reject_log_error)
    return cls(
        message,
        app=app,
        task=task,
        hostname=HOSTNAME,
        body=body,
        headers=headers,
        decoded=decoded,
        utc=utc,
        **options,
    )


def make_request(
    task: Task, task_id: str = "id-0", args: Any = (), kwargs: Any = None, **headers: Any
) -> SimpleRequest:
    """The request that a body gets for a call with these arguments and options."""
    message = protocol_2(task.app, task_id, task.name, args, kwargs, **headers)
    return SimpleRequest.from_request(worker_request(task.app, task, message))


def task_context(request: Request) -> Context:
    """What ``task.request`` is in an ordinary task (as ``celery.app.trace`` makes it)."""
    body = request.body if request.content_type is None else request.message.payload
    args, kwargs, embed = body
    context = dict(request.request_dict)
    context.update(
        {"args": args, "kwargs": kwargs, "hostname": request.hostname, "is_eager": False},
        **embed or {},
    )
    return Context(context, args=args, called_directly=False, kwargs=kwargs)
