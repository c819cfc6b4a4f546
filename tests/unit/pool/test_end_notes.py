"""When a request counts as ended if its process is lost: neither too early nor too late."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject

from celery_batches import Batches, shared_memory
from celery_batches.core.end_record import End, EndRecord, Phase
from celery_batches.pool.trace import trace_batch
from kit.messages import IDS
from kit.tracing import World

START = 64


class Killed(BaseException):
    """The process ends here."""


class KilledByHandler(Batches):
    abstract = True

    def on_success(self, *args: Any) -> None:
        raise Killed


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> EndRecord:
    """The record, as the main process sees it."""
    memory = bytearray(b"\xff" * 200)
    monkeypatch.setattr(shared_memory, "_memory", memory)
    return EndRecord(memory, START, 3)


def run(world: World, body: Any, *headers: Any, **options: Any) -> None:
    """Run the batch. It may be killed."""
    world.define(body, **options)
    requests = world.requests(*headers)
    with suppress(Killed):
        trace_batch(world.task.name, "batch", requests, "size", "w@h", record=START)


def mark_each(requests: Any) -> None:
    requests[0].mark_as_done("done")
    requests[1].mark_as_failure(KeyError("no"))
    requests[2].reject(requeue=True)


def leave_one(requests: Any) -> None:
    requests[0].mark_as_done("done")
    requests[1].reject()


def retry_one(requests: Any) -> None:
    requests[0].mark_as_done("done")
    requests[1].retry()
    requests[2].mark_as_done("done")


def ignore(requests: Any) -> None:
    raise Ignore


def reject_all(requests: Any) -> None:
    raise Reject("no", requeue=True)


BODIES = [
    (mark_each, [End.DONE, End.FAILED, End.REQUEUED]),
    (leave_one, [End.DONE, End.REJECTED, End.DONE]),
    (retry_one, [End.DONE, End.RETRIED, End.DONE]),
    (ignore, [End.IGNORED] * 3),
    (reject_all, [End.REQUEUED] * 3),
]


@pytest.mark.parametrize("ignore_result", [False, True])
@pytest.mark.parametrize(("body", "ends"), BODIES)
def test_each_request_is_noted(
    world: World, record: EndRecord, body: Any, ends: list[End], ignore_result: bool
) -> None:
    run(world, body, ignore_result=ignore_result)
    assert record.phase is Phase.BODY_ENDED
    assert record.ends() == ends


def test_nothing_is_noted_before_the_body_has_ended(world: World, record: EndRecord) -> None:
    """What is only in the memory of the process is lost with it."""

    def body(requests: Any) -> None:
        mark_each(requests)
        raise Killed

    run(world, body, ignore_result=True)
    assert record.phase is Phase.BEGUN
    assert record.ends() == [None] * 3


def test_what_the_body_marks_through_the_backend_is_noted_at_once(
    world: World, record: EndRecord
) -> None:
    def body(requests: Any) -> None:
        backend = world.app.backend
        backend.mark_as_done(requests[0].id, 1, request=requests[0])
        backend.mark_as_failure(requests[1].id, KeyError(), request=requests[1])
        raise Killed

    run(world, body)
    assert record.phase is Phase.BEGUN
    assert record.ends() == [End.DONE, End.FAILED, None]


def test_what_has_nothing_to_send_is_noted_before_a_handler_is_called(
    world: World, record: EndRecord
) -> None:
    run(world, retry_one, base=KilledByHandler, ignore_result=True)
    # The retry would have been sent after the handler.
    assert record.ends() == [End.DONE, None, End.DONE]


@pytest.mark.parametrize("ignore_result", [False, True])
@pytest.mark.parametrize("kind", ["link", "errback"])
def test_a_request_is_noted_after_it_has_been_continued(
    world: World, record: EndRecord, kind: str, ignore_result: bool
) -> None:
    """If its process is lost before, it runs again or fails. No link is lost."""
    at: list[Any] = []

    @world.app.task(name="unit.watch")
    def watch(*args: Any) -> None:
        at.append(record.ends())
        if len(at) == 2:
            raise Killed

    def body(requests: Any) -> None:
        for request in requests:
            if kind == "link":
                request.mark_as_done(1)
            else:
                request.mark_as_failure(KeyError(1))

    if kind == "errback":
        # Celery calls it here, since it takes more than one argument.
        @world.app.task(name="unit.watching")
        def watching(request: Any, exc: Any, traceback: Any) -> None:
            watch()

        header = {"errbacks": [watching.s()]}
    else:
        header = {"callbacks": [watch.s()]}
    run(world, body, *[header] * 3, ignore_result=ignore_result)
    end = End.DONE if kind == "link" else End.FAILED
    assert at == [[None, None, None], [end, None, None]]
    assert record.ends() == [end, None, None]


def test_a_result_that_cannot_be_stored_is_noted_as_a_failure(
    world: World, record: EndRecord
) -> None:
    def body(requests: Any) -> None:
        for request in requests:
            request.mark_as_done(object() if request.id == IDS[1] else 1)

    run(world, body)
    assert record.ends() == [End.DONE, End.FAILED, End.DONE]


def test_a_failure_that_cannot_be_stored_is_left_to_the_main_process(
    world: World, record: EndRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("away")

    def body(requests: Any) -> None:
        raise KeyError("no")

    monkeypatch.setattr(world.app.backend, "store_result", refuse)
    run(world, body)
    assert record.ends() == [None] * 3
    assert record.phase is Phase.BODY_ENDED
