"""Sends many calls of one task. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.result import ResultSet
from kombu.exceptions import OperationalError

from ..core.shortcuts import enabled_shortcuts
from ..transports.bulk_publish import bulk_transport
from .calls import Reader, check_options
from .celerys import own_sending_way
from .errors import SendError, SendOperationalError
from .results import SentIds, SentResults
from .senders import ChunkSender, LoopSender, Sender

if TYPE_CHECKING:
    from celery import Task

__all__ = ("send_many",)


def send_many(
    task: Task, calls: Iterable[Any], read: Reader, chunk: int, options: Mapping[str, Any]
) -> ResultSet:
    """Send calls.

    Arguments:
        task: The task.
        calls: The calls. Of a generator, one is taken at a time.
        read: Reads each of them.
        chunk: The most calls that are sent together.
        options: The calling options of all calls.

    Returns:
        The results, in order of the calls.

    Raises:
        SendError: If not all calls were sent.
    """
    check_options(task.name, chunk, options)
    ignored = bool(options.get("ignore_result", task.ignore_result))
    sender = _sender(task, chunk, options, SentIds(task, ignored=ignored))
    try:
        for item in calls:
            sender.add(read(task.name, item))
        sender.flush()
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:
        if task.app.conf.task_always_eager:
            raise  # The body has raised it.
        error, cause = _error(task, sender, exc)
        raise error from cause
    return SentResults(sender.sent)


def _sender(task: Task, chunk: int, options: Mapping[str, Any], sent: SentIds) -> Sender:
    app = task.app
    shortcuts = enabled_shortcuts(app.conf)
    producer = options.get("producer") or options.get("publisher")
    if connection := options.get("connection"):
        producer = app.amqp.Producer(connection, auto_declare=False)
    if app.conf.task_always_eager or not own_sending_way(task, producer):
        return LoopSender(task, options, sent)
    with app.producer_or_acquire(producer) as used:
        transport = bulk_transport(used.connection, shortcuts)
    if transport is None:
        return LoopSender(task, options, sent)
    return ChunkSender(
        task,
        options,
        sent,
        chunk=chunk,
        transport=transport,
        producer=producer,
        templates="message_templates" in shortcuts,
    )


def _error(task: Task, sender: Sender, exc: Exception) -> tuple[SendError, Exception]:
    """Send the calls before the one that failed, and return what to raise, and its cause."""
    unsent = list(sender.unsent)
    sender.unsent.clear()
    try:
        sender.flush()
    except Exception as flush_error:
        exc = flush_error
    unsent = [*sender.unsent, *unsent]
    is_operational = isinstance(exc, OperationalError) or sender.has_lost_broker
    kind = SendOperationalError if is_operational else SendError
    message = (
        f"Task {task.name!r}: {len(sender.sent)} calls are sent, {len(sender.uncertain)} may be "
        f"sent, and {len(unsent)} that were taken are not sent: {exc!r:.500}"
    )
    uncertain = [call.as_dict() for call in sender.uncertain]
    error = kind(message, SentResults(sender.sent), uncertain, [call.as_dict() for call in unsent])
    return error, exc
