"""Runs the body for a batch, and records what it returns. Runs in the pool.

With ``bisect_on_failure``, it runs again in halves when it has raised, until the requests that make
it raise are alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from ..core.outcomes import Failed
from ..core.slot import slot_of
from ..request import SimpleRequest
from .async_body import run_awaitable
from .bisection import OF_THE_PROCESS, halves, is_bisected
from .body import body_of
from .endings import outcome_of
from .retries import retry_all_automatically, retry_automatically
from .returned import check_returned, record_returned

if TYPE_CHECKING:
    from .run import BatchRun

__all__ = ("args_for", "run_body")

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def run_body(batch: BatchRun, args: Args, kwargs: Kwargs) -> Any:
    """Run the body of a batch.

    Arguments:
        batch: The batch. Its body gets the active requests.
        args: The arguments of the body. One of them is the list of these requests.
        kwargs: The keyword arguments of the body.

    Returns:
        What the body has returned, or None if it ran in halves.

    Raises:
        Exception: What the body has raised. If it ran in halves, only if every request has failed.
    """
    call = body_of(batch.task).call
    run = _call if batch.task.bisect_on_failure is False else _run_bisected
    returned = batch.soft_limit.call(run, (batch, call, args, kwargs), {})
    if batch.body_runs == 1:
        _record(batch, returned)
    return returned


def _run_bisected(batch: BatchRun, call: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    try:
        return _call(batch, call, args, kwargs)
    except Exception as exc:
        if not is_bisected(batch.task, exc, batch.unsettled()):
            raise
        if _run_in_halves(batch, call, args, kwargs):
            return None
        raise


def _call(batch: BatchRun, call: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    batch.body_runs += 1
    returned = call(*args, **kwargs)
    return _result_of(batch, returned) if isawaitable(returned) else returned


def _result_of(batch: BatchRun, returned: Awaitable[Any]) -> Any:
    """Await what a body has returned that is no ``async def``, such as a decorated one."""
    try:
        return run_awaitable(batch.task, returned)
    except Exception as exc:
        retry_all_automatically(batch.task, batch.unsettled(), exc)
        raise


def _record(batch: BatchRun, returned: Any) -> None:
    check_returned(batch.task, returned)
    if batch.task.return_results:
        record_returned(batch.task, batch.active, returned)


def _run_in_halves(batch: BatchRun, call: Callable[..., Any], args: Args, kwargs: Kwargs) -> bool:
    """Run the body for each half of the requests, and return whether any of them has not failed.

    A half for which the body raises is halved again.
    """
    everyone = batch.active
    parts = _in_order(batch.unsettled())
    try:
        while parts:
            batch.active = parts.pop()
            try:
                returned = _call(batch, call, args_for(batch.active, args), kwargs)
            except OF_THE_PROCESS:
                raise
            except Exception as exc:
                rest = batch.unsettled()
                if is_bisected(batch.task, exc, rest):
                    parts += _in_order(rest)
                else:
                    _end(batch, exc)
            else:
                _record_or_end(batch, returned)
    finally:
        batch.active = everyone
    return not all(isinstance(slot_of(request).outcome, Failed) for request in everyone)


def _in_order(requests: Sequence[SimpleRequest]) -> list[list[SimpleRequest]]:
    """Return both halves, so that the first one is popped first."""
    return [*reversed(halves(requests))]


def _record_or_end(batch: BatchRun, returned: Any) -> None:
    try:
        _record(batch, returned)
    except (TypeError, ValueError) as exc:
        # Not raised by the body, so ``autoretry_for`` does not apply.
        for request in batch.unsettled():
            slot_of(request).record(Failed(exc))


def _end(batch: BatchRun, exc: Exception) -> None:
    """Give the requests of a half the outcome of the exception that the body has raised."""
    for request in batch.unsettled():
        if not retry_automatically(batch.task, request, exc):
            slot_of(request).record(outcome_of(exc))


def args_for(requests: Sequence[SimpleRequest], args: Args) -> Args:
    """Return the arguments of the body for some of its requests."""
    chosen = set(map(id, requests))

    def choose(arg: Any) -> Any:
        if not isinstance(arg, list | tuple) or not any(map(_is_request, arg)):
            return arg
        return [item for item in arg if not _is_request(item) or id(item) in chosen]

    return tuple(map(choose, args))


def _is_request(item: object) -> bool:
    return isinstance(item, SimpleRequest)
