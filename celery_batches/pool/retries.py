"""Retries the requests of a batch: all, or one. Runs in the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import get_exponential_backoff_interval

from ..request import SimpleRequest
from .bisection import is_bisected
from .body import body_of
from .context import current_context

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("retry_all", "retry_all_automatically", "retry_automatically", "retry_member")


def retry_all(task: Batches, requests: Sequence[SimpleRequest], options: dict[str, Any]) -> Retry:
    """Retry requests.

    Arguments:
        task: The batch task.
        requests: The requests of the batch that have no outcome yet.
        options: The arguments of ``request.retry()``.

    Returns:
        The ``Retry`` that ends the body when it is raised.

    Raises:
        Exception: The exception of the body, for which ``autoretry_for`` has asked for the retry,
            if the body runs again in halves. Then only the requests that fail alone are retried.
    """
    exc = options["exc"]
    is_automatic = _is_automatic(task, exc)
    if is_automatic and is_bisected(task, exc, requests):
        raise exc
    backs_off = is_automatic and bool(getattr(task, "retry_backoff", False))
    for request in requests:
        backoff = {"countdown": _backoff(task, request.retries)} if backs_off else {}
        request.retry(**{**options, **backoff})
    return _reason(task, options)


def retry_member(
    task: Batches,
    request: SimpleRequest,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Retry:
    """Retry the one request that the body acts for, and return the ``Retry`` to raise.

    The context manager of ``request.context()`` catches it.
    """
    request.retry(args, kwargs, **options)
    reason = _reason(task, options)
    if context := current_context(task):
        context.batch_member_retry = reason
    return reason


def _reason(task: Batches, options: dict[str, Any]) -> Retry:
    when = options["eta"] or options["countdown"]
    return Retry(exc=options["exc"], when=task.default_retry_delay if when is None else when)


def retry_automatically(task: Batches, request: SimpleRequest, exc: BaseException) -> bool:
    """Retry one request if ``autoretry_for`` says so for its exception, and return whether it does.

    The rules are those of ``celery.app.autoretry``, which sees only what the body raises. It would
    retry a ``Reject``. Here that is an item that the body has returned, and means itself.
    """
    chosen = tuple(getattr(task, "autoretry_for", ()))
    excluded = (Ignore, Reject, Retry, *getattr(task, "dont_autoretry_for", ()))
    if not isinstance(exc, chosen) or isinstance(exc, excluded) or not isinstance(exc, Exception):
        return False
    options: dict[str, Any] = dict(getattr(task, "retry_kwargs", {}))
    if getattr(task, "retry_backoff", False):
        options["countdown"] = _backoff(task, request.retries)
    request.retry(exc=exc, **options)
    return True


def retry_all_automatically(
    task: Batches, requests: Sequence[SimpleRequest], exc: Exception
) -> None:
    """Retry requests if ``autoretry_for`` says so for an exception that Celery has not seen.

    Arguments:
        task: The batch task.
        requests: The requests of the batch that have no outcome yet.
        exc: The exception of an awaitable that the body has returned.

    Raises:
        celery.exceptions.Retry: If they are retried.
    """
    if is_bisected(task, exc, requests):
        return
    # The exception is the same for all of them, so all are retried or none.
    if requests and all(retry_automatically(task, request, exc) for request in requests):
        options = dict(getattr(task, "retry_kwargs", {}))
        raise _reason(task, {"eta": None, "countdown": None, **options, "exc": exc}) from exc


def _is_automatic(task: Batches, exc: BaseException | None) -> bool:
    """Whether ``autoretry_for`` has asked for this retry, and not the body.

    With ``autoretry_for``, ``task.run`` is a wrapper of Celery's around the body. An exception that
    the wrapper has caught has the wrapper in its traceback. One that the body has caught has not.
    """
    traceback = exc.__traceback__ if exc is not None else None
    if traceback is None or not hasattr(task, "_orig_run"):
        return False
    return traceback.tb_frame.f_code is getattr(body_of(task).run, "__code__", None)


def _backoff(task: Batches, retries: int) -> int:
    """Return the seconds until the next run of a request that was retried so many times.

    This is the formula of ``celery.app.autoretry``, which has only one count for the whole batch.
    """
    seconds: int = get_exponential_backoff_interval(
        factor=int(max(1.0, float(task.retry_backoff))),
        # The number comes from the message. Above 100 the maximum decides anyway.
        retries=min(retries or 0, 100),
        maximum=int(getattr(task, "retry_backoff_max", 600)),
        full_jitter=getattr(task, "retry_jitter", True),
    )
    return seconds
