"""Types for the parts of Celery's worker that this room uses. Runs in the main process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime
    from weakref import ref

    from celery.app.task import Context
    from kombu import Connection, Message
    from kombu.common import QoS

    from ..task import Batches
    from .endings import BatchEndings
    from .job import BatchJob
    from .member_request import MemberRequest

__all__ = ("Bucket", "Consumer", "Pool", "TerminatingPool", "Timer")


class Timer(Protocol):
    """The worker's timer."""

    def call_at(self, eta: float, fun: Callable[..., Any], args: tuple[Any, ...] = ()) -> Any:
        """Call a function at this time of the monotonic clock; return the entry."""

    def cancel(self, tref: Any) -> Any:
        """Cancel an entry."""


class Bucket(Protocol):
    """A token bucket of kombu, for a rate limit."""

    def can_consume(self, tokens: int) -> bool:
        """Take so many tokens if the bucket has them, and return whether it had."""

    def expected_time(self, tokens: int) -> float:
        """Return the seconds until the bucket has so many tokens."""


class Consumer(Protocol):
    """``celery.worker.consumer.Consumer``."""

    hostname: str
    connection: Connection
    qos: QoS
    initial_prefetch_count: int
    disable_rate_limits: bool
    #: The token bucket of each task that has a rate limit.
    task_buckets: dict[str, Any]
    #: The handler of the messages of each task.
    strategies: dict[str, Any]
    task_consumer: Any

    @property
    def timer(self) -> Timer:
        """The worker's timer."""

    def apply_eta_task(self: Any, request: MemberRequest) -> Any:
        """Run a request whose ETA has come."""

    @property
    def on_task_request(self) -> Callable[[BatchJob], Any]:
        """Celery's function that calls ``execute_using_pool`` of a request or a job."""


class Pool(Protocol):
    """The worker's pool."""

    def apply_async(self, target: Callable[..., Any], args: Any = (), **options: Any) -> Any:
        """Run a function; return a handle, or None where the pool has none."""


class TerminatingPool(Protocol):
    """The method of a pool by which Celery's request ends a process."""

    def terminate_job(self, pid: int, signal: int) -> None:
        """Send a signal to a process of the pool."""


if TYPE_CHECKING:
    # Celery has no types. At run time, the base class is that of the task.
    class Request:
        """The parts of ``celery.worker.request.Request`` that a member of a batch uses."""

        id: str
        name: str
        task: Batches
        message: Message
        eta: datetime
        expires: datetime | None
        acknowledged: bool
        delivery_info: Mapping[str, Any]
        time_limits: Any
        time_start: float | None
        on_reject: Any
        stamps: Mapping[str, Any]
        args: Any
        kwargs: Any
        store_errors: bool
        worker_pid: int | None
        _context: Context
        _already_revoked: bool
        _already_cancelled: bool
        _apply_result: ref[BatchEndings] | None

        def __init__(self, message: Any, **options: Any) -> None: ...
        def revoked(self) -> bool:
            """Whether it is revoked or has expired. Then Celery has ended it."""
            raise NotImplementedError

        def acknowledge(self) -> None:
            """Acknowledge the message, once."""

        def reject(self, requeue: bool = False) -> None:
            """Reject the message, or requeue it."""

        def humaninfo(self) -> str:
            """Return its name and id, for the log."""
            raise NotImplementedError

        def terminate(self, pool: Any, signal: Any = None) -> Any:
            """End it, since it was revoked."""

        def cancel(self, pool: Any, signal: Any = None, **options: Any) -> Any:
            """End it, since the worker stops or has lost its connection."""

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            """Note that the pool has started it."""

        def on_timeout(self, soft: bool, timeout: float) -> None:
            """Note that it has exceeded a time limit."""

        def on_success(self, failed__retval__runtime: tuple[bool, Any, float | None]) -> None:
            """Complete it with what the pool reports."""

        def on_failure(
            self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
        ) -> None:
            """Complete it as failed, retried, rejected or ignored."""
