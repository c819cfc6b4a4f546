"""Retrying all requests of a batch. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery.exceptions import Retry
from celery.utils.time import get_exponential_backoff_interval

from ..request import SimpleRequest, slot_of
from .body import body_of

__all__ = ("retry_all",)


def retry_all(task: Any, requests: Iterable[SimpleRequest], options: dict[str, Any]) -> Retry:
    """Retry the requests that have no outcome yet.

    Arguments:
        task: The batch task.
        requests: All requests of the batch.
        options: The arguments of ``request.retry()``.

    Returns:
        What is to be raised to end the body.
    """
    exc = options["exc"]
    backs_off = bool(getattr(task, "retry_backoff", False)) and _is_automatic(task, exc)
    when = options["eta"] or options["countdown"]
    for request in requests:
        if slot_of(request).outcome is None:
            own = {"countdown": _backoff(task, request.retries)} if backs_off else {}
            request.retry(**{**options, **own})
    return Retry(exc=exc, when=task.default_retry_delay if when is None else when)


def _is_automatic(task: Any, exc: BaseException | None) -> bool:
    """Whether ``autoretry_for`` has asked for this retry, not the body.

    For that, Celery puts a function of its own around the body, as ``task.run``. An exception that
    it has caught has come through that function; one that the body has caught has not.
    """
    traceback = exc.__traceback__ if exc is not None else None
    if traceback is None or not hasattr(task, "_orig_run"):
        return False
    return traceback.tb_frame.f_code is getattr(body_of(task).run, "__code__", None)


def _backoff(task: Any, retries: int) -> int:
    """Return the seconds until a request that has been retried that often is run again.

    As in ``celery.app.autoretry``, which has one count of retries for the whole batch.
    """
    seconds: int = get_exponential_backoff_interval(
        factor=int(max(1.0, float(task.retry_backoff))),
        # No more than what leads to any maximum: it comes from the message.
        retries=min(retries or 0, 100),
        maximum=int(getattr(task, "retry_backoff_max", 600)),
        full_jitter=getattr(task, "retry_jitter", True),
    )
    return seconds
