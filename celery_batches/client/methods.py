"""The methods of a task that send many calls. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Task
from celery.result import ResultSet

__all__ = ("SendingMethods",)

#: Calls that are sent together, by default.
CHUNK = 1000


class SendingMethods(Task):  # type: ignore[misc]  # celery is not typed
    """The methods of a task that send many calls."""

    abstract = True

    def delay_many(self, args_of_each: Iterable[Any]) -> ResultSet:
        """Send many calls, each as ``delay`` would send it.

        For example::

            count_click.delay_many([(1, "/"), (2, "/about")])

        Arguments:
            args_of_each: For each call, a tuple or list of its positional arguments, or a dict of
                its keyword arguments. See `apply_async_many` for generators.

        Returns:
            The results, in order of the calls.

        Raises:
            celery_batches.SendError: If not all calls were sent.
        """
        from .calls import read_args
        from .many import send_many

        return send_many(self, args_of_each, read_args, CHUNK, {})

    def apply_async_many(
        self, calls: Iterable[Any], chunk: int = CHUNK, **options: Any
    ) -> ResultSet:
        """Send many calls, each with the message that ``apply_async`` would send.

        On Redis and RabbitMQ, a chunk of calls is sent together. On any other broker, one call is
        sent after the other. It is not atomic: see `SendError`.

        Arguments:
            calls: Each call is ``(args,)``, ``(args, kwargs)``, a signature of this task, or a dict
                of arguments of ``apply_async``, such as ``{"args": (1,), "countdown": 10}``.
                Calls are taken from a generator one at a time. A call is sent when its chunk is
                full, or when there are no more calls.
            chunk: The most calls that are sent together, an int of at least 1. Large messages are
                sent in smaller chunks, of about 4 MB.
            **options: Calling options of all calls, as for ``apply_async``. Those of a call come
                before them.

        Returns:
            A ``celery.result.ResultSet`` with the result of each call, in order of the calls. It
            makes the results when you first use them.

        Raises:
            celery_batches.SendError: If not all calls were sent. It says which.
            celery_batches.SendOperationalError: If that is because of the broker.
            TypeError: If ``options`` has ``args``, ``kwargs`` or ``task_id``.
            ValueError: If ``chunk`` is not an int of at least 1.
        """
        from .calls import read_call
        from .many import send_many

        return send_many(self, calls, read_call, chunk, options)
