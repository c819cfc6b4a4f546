"""Types for the parts of Celery's worker that this room uses. Runs in the main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kombu import Connection
    from kombu.common import QoS

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
