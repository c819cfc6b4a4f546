"""Runs batch tasks in tests, without a broker and a result backend, and without pytest."""

from .batch import make_request, run_batch
from .clock import Clock
from .results import BatchResult, CallOutcome
from .worker import BatchWorker, SentCall

__all__ = (
    "BatchResult",
    "BatchWorker",
    "CallOutcome",
    "Clock",
    "SentCall",
    "make_request",
    "run_batch",
)
