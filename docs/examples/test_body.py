"""Test the body of a batch task, without a worker, a broker or a result backend.

Run it with pytest::

    pip install pytest
    pytest test_body.py
"""

from celery import Celery

from celery_batches import Batches
from celery_batches.testing import make_request, run_batch

app = Celery("prices")
PRICES = {"milk": 1, "tea": 3}


# In an application, the task is in a module that the tests import.
@app.task(base=Batches, max_retries=3)
def price_of(requests):
    for request in requests:
        article = request.args[0]
        if article == "busy":
            request.retry(countdown=5)
        elif article in PRICES:
            request.mark_as_done(PRICES[article])
        else:
            request.mark_as_failure(LookupError(f"no price for {article}"))


def test_each_call_has_its_own_outcome():
    batch = run_batch(price_of, [("tea",), ("coffee",), ("milk",)])
    assert batch.states == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert batch.results == [3, None, 1]
    assert str(batch.outcomes[1].exception) == "no price for coffee"


def test_a_call_is_retried_three_times():
    first, last = run_batch(price_of, [make_request(["busy"]), make_request(["busy"], retries=3)])
    assert (first.state, first.retry.when) == ("RETRY", 5)
    assert last.state == "FAILURE"
