"""The suite of an application whose tests share one worker: for a pytest of its own.

SUITE_CONFIG is the configuration of its app, as JSON; SUITE_POOL is the pool of its worker.
"""

import json
import os

import pytest
from celery import shared_task
from celery.exceptions import MaxRetriesExceededError

from celery_batches import Batches

DEADLINE = 40
CONFIG = json.loads(os.environ["SUITE_CONFIG"])


class Double(Batches):
    """Class-based; a batch of it is never full."""

    name = "double"
    flush_every = 100
    flush_interval = 0.1

    def run(self, requests):
        for request in requests:
            request.mark_as_done(request.args[0] * 2)


@shared_task(base=Batches, flush_every=2, flush_interval=600, name="halve")
def halve(requests):
    for request in requests:
        if request.args[0] % 2:
            request.mark_as_failure(ValueError(f"{request.args[0]} is odd"))
        else:
            request.mark_as_done(request.args[0] // 2)


@shared_task(base=Batches, flush_every=1, max_retries=2, name="eventually")
def eventually(requests):
    for request in requests:
        if request.retries < request.args[0]:
            request.retry(countdown=0)
        else:
            request.mark_as_done(request.retries)


@pytest.fixture(scope="session")
def celery_config():
    return CONFIG


@pytest.fixture(scope="session")
def celery_parameters():
    return {"name": "shop"}


@pytest.fixture(scope="session")
def celery_enable_logging():
    return True


@pytest.fixture(scope="session")
def celery_worker_pool():
    return os.environ["SUITE_POOL"]


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"concurrency": 2, "loglevel": "INFO"}


@pytest.fixture(scope="session")
def celery_class_tasks():
    return [Double]


def test_the_app_is_that_of_the_fixtures(celery_session_app):
    assert celery_session_app.main == "shop"
    assert {key: celery_session_app.conf[key] for key in CONFIG} == CONFIG


def test_a_class_based_task_runs_after_its_interval(celery_session_app, celery_session_worker):
    double = celery_session_app.tasks["double"]
    assert double.delay(21).get(timeout=DEADLINE) == 42


def test_a_full_batch_has_its_results(celery_session_worker):
    assert [result.get(timeout=DEADLINE) for result in (halve.delay(8), halve.delay(2))] == [4, 1]


def test_a_call_that_fails_does_so_alone(celery_session_worker):
    fine, odd = halve.delay(8), halve.delay(3)
    assert fine.get(timeout=DEADLINE) == 4
    with pytest.raises(ValueError, match="3 is odd"):
        odd.get(timeout=DEADLINE)


def test_a_body_that_raises_fails_every_call(celery_session_worker):
    for result in [halve.delay(None), halve.delay(None)]:
        with pytest.raises(TypeError, match="unsupported operand"):
            result.get(timeout=DEADLINE)


def test_a_call_is_retried_under_its_id(celery_session_worker):
    assert eventually.delay(2).get(timeout=DEADLINE) == 2


def test_a_call_is_not_retried_for_ever(celery_session_worker):
    with pytest.raises(MaxRetriesExceededError):
        eventually.delay(3).get(timeout=DEADLINE)
