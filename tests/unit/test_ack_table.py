"""The table of acknowledgements, cell by cell: what the broker is told of each message."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from celery.exceptions import (
    Ignore,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker import state as worker_state

from celery_batches import Batches
from celery_batches.compat import TIMEOUT_IS_FAILURE
from celery_batches.core.outcomes import Kind
from celery_batches.worker.job import BatchJob
from kit.messages import protocol_2
from kit.pool import Pool, Starts
from kit.requests import worker_request

PATH = Path(__file__).parents[2] / "docs" / "acks.py"
spec = importlib.util.spec_from_file_location("acks", PATH)
assert spec
assert spec.loader
acks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(acks)

SAID = {acks.ACK: "ack", acks.REJECT: "reject", acks.REQUEUE: "requeue"}


def terminate(pool: Pool, request: Any) -> None:
    request.terminate(pool, "TERM")
    pool.fail(Terminated(15))


def time_out(pool: Pool, request: Any) -> None:
    (call,) = pool.calls
    call.fail(TimeLimitExceeded(5))
    call.time_out(5)


def body_for(ending: str) -> Callable[[Any], None]:
    """The body of a task whose requests end that way."""

    def body(requests: Any) -> None:
        (request, *_) = requests
        if ending == "done":
            request.mark_as_done(1)
        elif ending == "failed":
            request.mark_as_failure(ValueError())
        elif ending in ("retried", "exhausted"):
            request.retry(max_retries=None if ending == "retried" else 0)
        elif ending in ("rejected", "requeued"):
            request.reject(requeue=ending == "requeued")
        elif ending == "raised":
            raise KeyError("boom")
        elif ending == "ignored":
            raise Ignore

    return body


#: The endings that are not the body's doing.
OUTSIDE: dict[str, Callable[[Pool, Any], None]] = {
    "timeout": time_out,
    "lost": lambda pool, request: pool.fail(WorkerLostError("signal 9")),
    "terminated": terminate,
}


def end(app: Any, ending: str, **options: Any) -> list[str]:
    """Have a request end that way, and return what the broker was told of its message."""
    task = app.task(name="unit.click", base=Batches, **options)(body_for(ending))
    messages = [protocol_2(app, id, task.name) for id in ("id-0", "id-1")]
    requests = [worker_request(app, task, message) for message in messages]
    job = BatchJob(task, requests, trigger="size", hostname="w@h")
    pool = Pool(starts=Starts.AT_ONCE)
    if ending == "revoked":
        worker_state.revoked.update(("id-0", "id-1"))
    if ending == "unreadable":
        requests[0].time_limits = ("soon", None)
    try:
        job.execute_using_pool(pool)
    except TaskRevokedError:
        assert ending == "revoked"
    else:
        if ending == "neighbour":
            terminate(pool, requests[1])
        else:
            OUTSIDE.get(ending, lambda pool, request: pool.run())(pool, requests[0])
    return [what for what, _ in messages[0].channel.said]


def is_known(row: Any) -> bool:
    return not row.since or TIMEOUT_IS_FAILURE is (row.since == "5.7")


@pytest.mark.parametrize("row", acks.ROWS, ids=lambda row: f"{row.ending}-{row.options}")
def test_with_acks_late(app: Any, row: Any) -> None:
    """The cell of the table that says what becomes of a message with acks_late."""
    if not is_known(row):
        pytest.skip(f"for Celery {row.since}")
    assert end(app, row.ending, acks_late=True, **row.options) == [SAID[row.message]]


@pytest.mark.parametrize("row", acks.ROWS, ids=lambda row: f"{row.ending}-{row.options}")
def test_without_acks_late(app: Any, row: Any) -> None:
    """The cell that says it without: once it runs, nothing changes any more."""
    if not is_known(row):
        pytest.skip(f"for Celery {row.since}")
    expected = acks.NOT_EARLY.get(row.ending, acks.EARLY)
    assert end(app, row.ending, **row.options) == [SAID[expected]]


def test_every_way_to_end_is_in_the_table() -> None:
    """No outcome of a request is left out."""
    endings = {row.ending for row in acks.ROWS}
    # A request that was done before is told to the worker as one that is done.
    assert set(get_args(Kind)) - {"repeated"} <= endings


def test_the_table_is_printed() -> None:
    """The documentation has a line for each row."""
    assert acks.as_rst().count("   * - ") == len(acks.ROWS) + 1
