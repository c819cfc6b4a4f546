"""The worker of `celery.contrib.pytest`, as users' own test suites start it."""

import threading

import pytest

# Not by `pytest_plugins`, which only the top conftest.py may set.
from celery.contrib.pytest import (  # noqa: F401
    celery_app,
    celery_enable_logging,
    celery_includes,
    celery_parameters,
    celery_worker,
    celery_worker_parameters,
    celery_worker_pool,
    use_celery_app_trap,
)

from celery_batches import Batches


@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": "memory://", "result_backend": "cache+memory://"}


@pytest.fixture(scope="session")
def celery_worker_parameters():  # noqa: F811
    return {"perform_ping_check": False}


@pytest.fixture
def double(celery_app):  # noqa: F811
    @celery_app.task(base=Batches, flush_every=3, flush_interval=600, name="double", shared=False)
    def double(requests):
        for request in requests:
            celery_app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)

    return double


def test_the_celery_worker_fixture_runs_batches(double, celery_worker):  # noqa: F811
    results = [double.delay(i) for i in range(6)]
    assert [result.get(timeout=20) for result in results] == [0, 2, 4, 6, 8, 10]


def test_a_task_registered_late_and_a_reload_in_mid_buffer_lose_nothing(
    celery_app,  # noqa: F811
    celery_worker,  # noqa: F811
    double,
):
    buffered = threading.Semaphore(0)
    celery_worker.reload()  # As Celery's documentation has it, for tasks defined in the test.
    from celery import signals

    def on_received(**kwargs):
        buffered.release()

    signals.task_received.connect(on_received)
    results = [double.delay(i) for i in range(2)]
    for _ in results:
        assert buffered.acquire(timeout=20)
    celery_worker.reload()
    results.append(double.delay(2))
    assert [result.get(timeout=20) for result in results] == [0, 2, 4]
