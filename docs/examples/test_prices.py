"""Test a batch task with a worker in the process of the tests.

Run it with pytest::

    pip install "pytest-celery<1"
    pytest test_prices.py
"""

import pytest
from celery import shared_task

from celery_batches import Batches

PRICES = {"milk": 1, "tea": 3}


# In an application, the task is in a module that the tests import.
@shared_task(base=Batches, name="price_of", flush_every=3, flush_interval=60)
def price_of(requests):
    for request in requests:
        article = request.args[0]
        if article in PRICES:
            request.mark_as_done(PRICES[article])
        else:
            request.mark_as_failure(LookupError(f"no price for {article}"))


def test_a_full_batch(celery_worker):
    results = [price_of.delay(article) for article in ("tea", "milk", "tea")]
    assert [result.get(timeout=10) for result in results] == [3, 1, 3]


def test_one_call_of_a_batch_fails(celery_worker):
    coffee, *others = [price_of.delay(article) for article in ("coffee", "milk", "tea")]
    assert [result.get(timeout=10) for result in others] == [1, 3]
    with pytest.raises(LookupError, match="no price for coffee"):
        coffee.get(timeout=10)


@pytest.mark.celery(task_annotations={"price_of": {"flush_interval": 0.1}})
def test_a_batch_that_does_not_fill(celery_worker):
    assert price_of.delay("tea").get(timeout=10) == 3
