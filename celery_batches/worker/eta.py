"""A consumer for Celery's default strategy, with the buffer. Runs in the main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..transports.consumer_timeout import warn_of_late_eta
from ..transports.visibility import warn_of_eta
from .clock import clock_of
from .flush_options import FlushOptions
from .interfaces import Consumer
from .member_request import MemberRequest

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BufferingConsumer",)


class BufferingConsumer:
    """The worker's consumer, for Celery's default strategy of a batch task.

    It forwards to the worker's consumer, with two differences. Requests that are ready to run go to
    the buffer. The rate limit does not apply to single requests.

    Arguments:
        consumer: The worker's consumer.
        on_task_request: Called with each request that is ready to run.
        task: The batch task.
        options: Its flush options.
    """

    disable_rate_limits = True

    def __init__(
        self,
        consumer: Consumer,
        on_task_request: Callable[[MemberRequest], None],
        task: Batches,
        options: FlushOptions,
    ) -> None:
        self._consumer = consumer
        self.on_task_request = on_task_request
        #: Stands in for the worker's timer, which the default strategy uses only for ETAs.
        self.timer = self
        self._task = task
        self._options = options
        self._has_warned = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def call_at(
        self, eta: float, fun: Callable[..., Any], args: tuple[MemberRequest], **options: Any
    ) -> Any:
        """Have the worker's timer call a function at the ETA of a request."""
        if not self._has_warned:
            self._warn(*args)
        return self._consumer.timer.call_at(eta, fun, args, **options)

    def _warn(self, request: MemberRequest) -> None:
        wait = request.eta.timestamp() - clock_of(self._consumer).time()
        channel = request.message.channel
        interval = self._options.limits.flush_interval
        self._has_warned = warn_of_eta(self._task, channel, wait, interval) or warn_of_late_eta(
            self._task, self._consumer, wait, interval
        )

    def apply_eta_task(self, request: MemberRequest) -> None:
        """Pass a request whose ETA has come to `on_task_request`, as Celery's consumer does."""
        type(self._consumer).apply_eta_task(self, request)
