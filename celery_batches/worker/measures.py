"""Measures each request for the rules of its buffer. Runs in the worker's main process.

The functions are those of ``flush_key`` and ``flush_weight``. They are code of the user, so they
run without the lock of the strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite, nan
from numbers import Real
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger

from ..core.keys import keyword_argument, plain_function
from ..core.rules import Facts, flush_before
from ..request import SimpleRequest
from ..transports.message_size import received_size
from .clock import Clock
from .member_request import MemberRequest

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Measures",)

Measure = Callable[[MemberRequest], Any]


logger = get_logger(__name__)

FAILED = (
    "Task %s: %s fails for the call %s: %r. This call fails with that exception, and other calls "
    "go on. Have the function return a value for every call."
)
TOO_HEAVY = (
    "Task %s: the weight of the call %s is %g, and flush_max_weight is %g. It is alone in its "
    "batch. Send smaller calls, or raise flush_max_weight."
)


@dataclass(frozen=True, slots=True)
class Measures:
    """What the options of a task say of each request.

    Attributes:
        task_name: The name of the task, for the log.
        key: Returns the key of a request, or None if batches have no key.
        weight: Returns the weight of a request, or None if batches have no weight.
        max_weight: The most weight of a batch.
    """

    task_name: str
    key: Measure | None = None
    weight: Measure | None = None
    max_weight: float = inf

    @classmethod
    def of(cls, task: Batches, *, key: Any, weight: Any, max_weight: float | None) -> Measures:
        """Make them from the valid values of the options."""
        most = inf if max_weight is None else max_weight
        return cls(task.name, _key_measure(task, key), _weight_measure(weight), most)

    @property
    def any(self) -> bool:
        """Whether there is anything to measure, beside when a request expires."""
        return self.key is not None or self.weight is not None

    def facts(self, request: MemberRequest, clock: Clock) -> Facts:
        """Return what the rules need to know of a request.

        Arguments:
            request: The request.
            clock: The clock of the worker.

        Raises:
            Exception: What a function raises, or that it has returned what cannot be used.
        """
        key, weight = None, 0.0
        if self.key is not None:
            with self._logging("flush_key", request):
                key = _as_key(self.key(request))
        if self.weight is not None:
            with self._logging("flush_weight", request):
                weight = _as_weight(self.weight(request))
            if weight > self.max_weight:
                logger.warning(TOO_HEAVY, self.task_name, request.id, weight, self.max_weight)
        return Facts(key, weight, _flush_by(request, clock))

    @contextmanager
    def _logging(self, option: str, request: MemberRequest) -> Iterator[None]:
        """Log what an option raises."""
        try:
            yield
        except (Ignore, Reject):
            raise
        except Exception as exc:
            logger.error(FAILED, self.task_name, option, request.id, exc, exc_info=True)
            raise


def _key_measure(task: Batches, key: Any) -> Measure | None:
    if key is None:
        return None
    if isinstance(key, str):
        return lambda request: keyword_argument(task, "flush_key", key, request)
    return _calling(key)


def _weight_measure(weight: Any) -> Measure | None:
    if weight is None:
        return None
    if weight == "bytes":
        return lambda request: received_size(request.message)
    return _calling(weight)


def _calling(function: Any) -> Measure:
    """Return a function that calls one of the user with the request that a body would get."""
    call = plain_function(function)
    return lambda request: call(SimpleRequest.from_request(request))


def _as_key(key: Any) -> Hashable:
    """Return a key for a dictionary.

    Keys are the same if they are equal and have the same hash, as for any dictionary: so 1, 1.0 and
    True are. NaN is not equal to itself, so it is made one key.
    """
    try:
        hash(key)
    except TypeError as exc:
        raise TypeError(
            f"flush_key: {key!r} cannot be a key, since it cannot be hashed. Return for example a "
            f"string, a number or a tuple of them"
        ) from exc
    return nan if key != key else key


def _as_weight(weight: Any) -> float:
    if isinstance(weight, Real) and isfinite(weight) and float(weight) >= 0:
        return float(weight)
    raise ValueError(
        f"flush_weight: {weight!r} cannot be a weight. Return a finite number that is at least 0"
    )


def _flush_by(request: MemberRequest, clock: Clock) -> float:
    if request.expires is None:
        return inf
    now = clock.monotonic()
    return flush_before(now + request.expires.timestamp() - clock.time(), now=now)
