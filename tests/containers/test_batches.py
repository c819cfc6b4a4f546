"""A worker in a container runs batches from RabbitMQ and Redis; callers have their results."""

import pytest
from containers.tasks import double, halve

pytestmark = [
    pytest.mark.timeout(600),  # The first test fetches images, and builds one.
    # What docker-py warns of is not ours. It leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("default", "ignore:unclosed:ResourceWarning"),
]

DEADLINE = 60


def test_a_full_batch_runs_at_once(celery_setup):
    """Three calls fill a batch and have their results, ten minutes before the interval."""
    results = [double.delay(number) for number in range(3)]
    assert [result.get(timeout=DEADLINE) for result in results] == [0, 2, 4]
    celery_setup.worker.assert_log_exists("of 3 requests, flushed by size, succeeded")


def test_a_batch_that_does_not_fill_runs_after_its_interval(celery_setup):
    """A single call of a hundred has its result."""
    assert halve.delay(8).get(timeout=DEADLINE) == 4
    celery_setup.worker.assert_log_exists("of 1 requests, flushed by interval, succeeded")


def test_a_call_that_fails_does_so_alone(celery_setup):
    """Its caller gets its exception, and the other calls of the batch have their results."""
    first, negative, third = [double.delay(number) for number in (1, -1, 3)]
    assert [first.get(timeout=DEADLINE), third.get(timeout=DEADLINE)] == [2, 6]
    with pytest.raises(ValueError, match="-1 is negative"):
        negative.get(timeout=DEADLINE)
    celery_setup.worker.assert_log_exists("of 3 requests, flushed by size, succeeded")
