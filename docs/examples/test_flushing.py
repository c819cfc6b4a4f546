"""Test when the calls of a batch task are flushed, with a clock that the test moves.

Run it with pytest::

    pip install pytest
    pytest test_flushing.py
"""

import pytest
from celery import Celery

from celery_batches import Batches
from celery_batches.testing import BatchWorker

app = Celery("prices")
PRICES = {"milk": 1, "tea": 3}


# In an application, the task is in a module that the tests import.
@app.task(base=Batches, flush_every=3, flush_interval=10)
def price_of(requests):
    for request in requests:
        request.mark_as_done(PRICES[request.args[0]])


@pytest.fixture
def worker():
    with BatchWorker(price_of) as worker:
        yield worker


def test_a_full_batch_runs_at_once(worker):
    calls = [worker.send((article,)) for article in ("tea", "milk", "tea")]
    assert [batch.trigger for batch in worker.batches] == ["size"]
    assert [call.result for call in calls] == [3, 1, 3]


def test_a_call_waits_for_ten_seconds_at_most(worker):
    worker.send(("tea",))
    worker.advance(9.9)
    assert worker.batches == []
    worker.advance(0.1)
    (batch,) = worker.batches
    assert (batch.trigger, batch.results) == ("interval", [3])


def test_a_call_with_a_countdown_does_not_fill_a_batch(worker):
    later = worker.send(("tea",), countdown=60)
    others = [worker.send(("milk",)) for _ in range(2)]
    worker.advance(10)
    assert [call.state for call in (later, *others)] == ["PENDING", "SUCCESS", "SUCCESS"]
    worker.advance(50 + 10)
    assert later.state == "SUCCESS"


def test_a_batch_leaves_before_a_call_expires(worker):
    call = worker.send(("tea",), expires=5)
    worker.advance(4)
    (batch,) = worker.batches
    assert (batch.trigger, call.result) == ("expires", 3)
