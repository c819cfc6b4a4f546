"""The flush options of a task, read each time that they are used. Runs in the main process.

``task.flush_every = 50`` in a running worker, by a signal handler or a control command, takes
effect with the next request. So does a property of a subclass, which may return another value each
time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger

from ..core.buffer import Limits
from ..options import FLUSH_EVERY, FLUSH_INTERVAL, check_flush_every, check_flush_interval

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("FlushOptions",)

logger = get_logger(__name__)

T = TypeVar("T")

NOT_READ = object()

#: What holds until a value was read that makes sense.
DEFAULTS = Limits(FLUSH_EVERY, FLUSH_INTERVAL)


class FlushOptions:
    """Reads `flush_every` and `flush_interval` of one task.

    A value that makes no sense is logged once, and the last good one stays.

    Arguments:
        task: The batch task.
        last: What was read of the task before, on another connection.
    """

    __slots__ = ("_every", "_interval", "_task", "limits", "refused")

    def __init__(self, task: Batches, last: FlushOptions | None = None) -> None:
        self._task = task
        self.limits: Limits = DEFAULTS if last is None else last.limits
        self._every: Any = NOT_READ
        self._interval: Any = NOT_READ
        #: What was logged last of each option.
        self.refused: dict[str, str] = {} if last is None else last.refused
        self.read()

    def read(self) -> Limits:
        """Return the limits of a batch now: the same object for as long as they do not change."""
        task = self._task
        try:
            every, interval = task.flush_every, task.flush_interval
        except Exception as exc:
            self._log_refusal("flush_every or flush_interval", f"cannot be read: {exc!r}")
            return self.limits
        if every is not self._every or interval is not self._interval:
            self._every, self._interval = every, interval
            self._change(every, interval)
        return self.limits

    def _change(self, every: Any, interval: Any) -> None:
        last = self.limits
        limits = Limits(
            self._check("flush_every", check_flush_every, every, last.flush_every),
            self._check("flush_interval", check_flush_interval, interval, last.flush_interval),
        )
        if limits != last:
            self.limits = limits

    def _check(self, option: str, check: Callable[[str, Any], T], value: Any, last: T) -> T:
        try:
            return check(self._task.name, value)
        except ImproperlyConfigured as exc:
            self._log_refusal(option, str(exc))
            return last

    def _log_refusal(self, option: str, reason: str) -> None:
        if self.refused.get(option) == reason:
            return
        self.refused[option] = reason
        logger.error(
            "Task %s: %s: %s The last good values stay: flush_every=%d, flush_interval=%g.",
            *(self._task.name, option, reason),
            *(self.limits.flush_every, self.limits.flush_interval),
        )
