"""Time that a test moves: a clock that stands still, and the timer that goes by it."""

from celery_batches.testing.clock import Clock, Timer
from celery_batches.testing.clock import TimerEntry as Entry

__all__ = ("Clock", "Entry", "Timer")
