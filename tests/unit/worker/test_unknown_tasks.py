"""Messages for no task of this worker do not end it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import signals
from nonsense import call

from celery_batches import Batches
from celery_batches.worker.unknown_tasks import Strategies
from kit.clock import Clock
from kit.deliveries import Delivery
from kit.log import Problems
from kit.worker import InProcessWorker


@pytest.fixture
def tasks(app: Any) -> Any:
    """An app with a batch task."""

    @app.task(name="unit.click", base=Batches)
    def click(requests: Any) -> None: ...

    return app


@pytest.fixture
def clock() -> Clock:
    return Clock(time.monotonic())


@pytest.mark.parametrize("name", ["no.such.task", "", None, 5, [], {}, [[]]], ids=repr)
@pytest.mark.parametrize("task_id", ["id", None, 5, [], ...], ids=str)
@pytest.mark.parametrize("protocol", ["1", "2"])
def test_a_stranger_is_refused(
    tasks: Any, clock: Clock, name: Any, task_id: Any, protocol: str
) -> None:
    """Whatever the name and the id: rejected, with one line in the log."""
    sent = call(name, "id" if task_id is ... else task_id, protocol=protocol)
    if task_id is ...:
        sent.headers.pop("id", None)
        sent.body = sent.body.replace(b'"id": "id", ', b"")
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        tag = worker.deliver(Delivery(sent))
        assert worker.channel.of(tag) == ["reject"]
        assert len(worker.refusals) == 1, worker.refusals
        worker.assert_empty()


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/json"])
def test_a_stranger_whose_body_cannot_be_read_is_refused(
    tasks: Any, clock: Clock, content_type: str
) -> None:
    """Without an id in its headers, Celery looks for one in the body: one line in the log, too."""
    sent = call("no.such.task", "lost")
    sent.headers.pop("id")
    sent.body, sent.content_type = b"x", content_type
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        tag = worker.deliver(Delivery(sent, amqp=False))
        assert worker.channel.of(tag) == ["reject"]
        assert len(worker.refusals) == 1, worker.refusals
        worker.assert_empty()


def test_a_consumer_with_a_table_of_its_own_keeps_it(tasks: Any, clock: Clock) -> None:
    """``Consumer.Strategies`` is for those who make a consumer of their own."""

    class Own(dict[str, Any]):
        pass

    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        assert type(worker.consumer.strategies) is Strategies
        own = worker.consumer.strategies = Own(worker.consumer.strategies)
        worker.step.start(worker.consumer)
        assert worker.consumer.strategies is own


def test_an_unknown_task_is_told_to_its_caller(tasks: Any, clock: Clock) -> None:
    """As in Celery: the result, the event and the signal are its own."""
    unknown = []

    def tell(**told: Any) -> None:
        unknown.append((told["name"], told["id"]))

    signals.task_unknown.connect(tell)
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        worker.deliver(Delivery(call("no.such.task", "lost")))
    assert unknown == [("no.such.task", "lost")]
    assert tasks.AsyncResult("lost").state == "FAILURE"
    assert ("task-failed", "lost") in worker.events.sent
    assert "Received unregistered task of type 'no.such.task'" in worker.refusals[0]
