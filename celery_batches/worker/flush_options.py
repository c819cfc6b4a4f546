"""Reads the flush options of a task each time they are used. Runs in the main process.

``task.flush_every = 50`` in a running worker, by a signal handler or a control command, takes
effect with the next request. So does a property of a subclass, which may return another value each
time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger

from ..core.rules import Limits
from ..flush_values import (
    FLUSH_EVERY,
    FLUSH_INTERVAL,
    FLUSH_KEYS,
    check_flush_every,
    check_flush_idle,
    check_flush_interval,
    check_flush_keys,
    check_flush_max_weight,
    check_flush_weight,
    check_idle_and_interval,
    check_weights,
)
from ..options import check_key
from .measures import Measures

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("FlushOptions",)

logger = get_logger(__name__)

#: The options, with their values until the first valid ones are read.
DEFAULTS: dict[str, Any] = {
    "flush_every": FLUSH_EVERY,
    "flush_interval": FLUSH_INTERVAL,
    "flush_idle": None,
    "flush_key": None,
    "flush_keys": FLUSH_KEYS,
    "flush_weight": None,
    "flush_max_weight": None,
}

CHECKS: dict[str, Callable[..., object]] = {
    "flush_every": check_flush_every,
    "flush_interval": check_flush_interval,
    "flush_idle": check_flush_idle,
    "flush_key": partial(check_key, option="flush_key"),
    "flush_keys": check_flush_keys,
    "flush_weight": check_flush_weight,
    "flush_max_weight": check_flush_max_weight,
}

#: The options that say what to measure.
MEASURED = ("flush_key", "flush_weight", "flush_max_weight")

#: Reads all of them at once, since it is done for each request.
read_all = attrgetter(*DEFAULTS)


class FlushOptions:
    """Reads the flush options of one task.

    An invalid value is logged once, and the last good value stays.

    Arguments:
        task: The batch task.
        last: The options that were read for the task on an earlier connection.
    """

    __slots__ = ("_task", "_values", "good", "has_measures", "limits", "measures", "refused")

    def __init__(self, task: Batches, last: FlushOptions | None = None) -> None:
        self._task = task
        #: The values as they were read.
        self._values: tuple[Any, ...] = ()
        #: The last good value of each option.
        self.good: dict[str, Any] = dict(DEFAULTS if last is None else last.good)
        self.limits: Limits = _limits(self.good)
        self.measures: Measures = self._measures()
        #: Whether requests have a key or a weight.
        self.has_measures: bool = self.measures.any
        #: The last logged reason for each option.
        self.refused: dict[str, str] = {} if last is None else last.refused
        self.read()

    def read(self) -> Limits:
        """Return the current limits of a batch: the same object until they change."""
        try:
            values = read_all(self._task)
            if values != self._values:
                self._values = values
                self._change(values)
        except Exception as exc:
            self._log_refusal(self._unreadable(), f"cannot be read: {exc!r}")
        return self.limits

    def _unreadable(self) -> str:
        """Return the name of the option that cannot be read."""
        for option in DEFAULTS:
            try:
                getattr(self._task, option)
            except Exception:
                return option
        return "an option"

    def _change(self, values: tuple[Any, ...]) -> None:
        read = dict(zip(DEFAULTS, values, strict=True))
        good = {option: self._check(option, value) for option, value in read.items()}
        self._check_together(good)
        last, self.good = self.good, good
        limits = _limits(good)
        if limits != self.limits:
            self.limits = limits
        if any(good[option] != last[option] for option in MEASURED):
            self.measures = self._measures()
            self.has_measures = self.measures.any

    def _check(self, option: str, value: Any) -> Any:
        """Return the value to use for an option."""
        try:
            checked = CHECKS[option](self._task.name, value=value)
        except ImproperlyConfigured as exc:
            self._log_refusal(option, str(exc))
            return self.good[option]
        # Other checks return nothing.
        return value if checked is None else checked

    def _check_together(self, good: dict[str, Any]) -> None:
        """Replace values that are good by themselves, but not with each other."""
        name, last = self._task.name, self.good
        try:
            check_idle_and_interval(name, good["flush_idle"], good["flush_interval"])
        except ImproperlyConfigured as exc:
            self._log_refusal("flush_idle", str(exc))
            good["flush_idle"] = last["flush_idle"]
        try:
            check_weights(name, good["flush_weight"], good["flush_max_weight"])
        except ImproperlyConfigured as exc:
            self._log_refusal("flush_weight", str(exc))
            for option in ("flush_weight", "flush_max_weight"):
                good[option] = last[option]

    def _measures(self) -> Measures:
        good = self.good
        key, weight, max_weight = (good[option] for option in MEASURED)
        return Measures.of(self._task, key=key, weight=weight, max_weight=max_weight)

    def _log_refusal(self, option: str, reason: str) -> None:
        if self.refused.get(option) == reason:
            return
        self.refused[option] = reason
        logger.error(
            "Task %s: %s: %s The last good values stay: flush_every=%d, flush_interval=%g.",
            *(self._task.name, option, reason),
            *(self.limits.flush_every, self.limits.flush_interval),
        )


def _limits(good: dict[str, Any]) -> Limits:
    return Limits(
        good["flush_every"],
        good["flush_interval"],
        flush_idle=good["flush_idle"],
        flush_max_weight=good["flush_max_weight"],
        flush_keys=good["flush_keys"],
    )
