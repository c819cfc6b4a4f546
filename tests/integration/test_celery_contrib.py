"""Batch tasks under the fixtures of `celery.contrib.pytest`, used as the suite of an application.

pytest-celery 0.0 turns these fixtures on. Those for a whole session would stay for the tests of
other files, with a worker that runs: a suite with a pytest of its own uses them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Semaphore

import pytest
from celery import signals
from harness import BATCH_LINE, DEADLINE, options_for

from celery_batches import Batches

SUITE = Path(__file__).parent / "apps" / "contrib_suite.py"
#: What the fixtures add to `memory://` and `cache+memory://`: poll more often, and warn of nothing.
IN_MEMORY = {
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"polling_interval": 0.01},
}


@pytest.fixture(scope="session")
def celery_config():
    return IN_MEMORY


@pytest.fixture(scope="session")
def celery_parameters():
    return {"name": "shop"}


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"perform_ping_check": False}


@pytest.fixture
def double(celery_app):
    @celery_app.task(base=Batches, flush_every=3, flush_interval=600, name="double", shared=False)
    def double(requests):
        for request in requests:
            celery_app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)

    return double


def test_the_celery_worker_fixture_runs_batches(double, celery_worker):
    """Calls that fill two batches get their results, long before the interval has passed."""
    results = [double.delay(i) for i in range(6)]
    assert [result.get(timeout=DEADLINE) for result in results] == [0, 2, 4, 6, 8, 10]


def test_a_task_registered_late_and_a_reload_in_mid_buffer_lose_nothing(
    celery_app, celery_worker, double
):
    """A worker that is reloaded, as Celery's documentation has it, keeps what it has buffered."""
    buffered = Semaphore(0)
    celery_worker.reload()

    def on_received(**kwargs):
        buffered.release()

    signals.task_received.connect(on_received)
    results = [double.delay(i) for i in range(2)]
    for _ in results:
        assert buffered.acquire(timeout=DEADLINE)
    celery_worker.reload()
    results.append(double.delay(2))
    assert [result.get(timeout=DEADLINE) for result in results] == [0, 2, 4]


@pytest.mark.celery(task_always_eager=True, task_store_eager_result=True)
def test_the_plugins_mark_configures_the_app(celery_app, double):
    """Eager calls need no worker, and their state is in the backend if the mark says so."""
    assert celery_app.main == "shop"
    assert celery_app.AsyncResult(double.delay(4).id).state == "SUCCESS"


def run_suite(config, pool, directory):
    """Run the suite with its own pytest, and look at what it and its worker have printed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", str(SUITE)]
    settings = {"SUITE_CONFIG": json.dumps(config), "SUITE_POOL": pool, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0
    tests = len(re.findall(r"^def test_", SUITE.read_text(), re.MULTILINE))
    assert re.search(rf"^=+ {tests} passed in ", done.stdout, re.MULTILINE)
    # Not how many there are of each: Celery writes the log of a prefork pool twice here.
    lines = {found.group("name", "size", "trigger") for found in BATCH_LINE.finditer(done.stdout)}
    assert lines == {
        ("double", "1", "interval"),
        ("halve", "2", "size"),
        ("eventually", "1", "size"),
    }


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_suite_with_one_worker_for_its_session(pool, tmp_path):
    """Results, failures and retries of class-based and shared batch tasks, in memory."""
    run_suite({**IN_MEMORY, "worker_hijack_root_logger": True}, pool, tmp_path)


def test_such_a_suite_with_a_real_broker(broker, backend, deploy, tmp_path):
    """The same with Redis and RabbitMQ, and with pool processes."""
    site = deploy("clicks_app", broker, backend)  # Which removes the queue in the end.
    run_suite(options_for(broker, backend, site.queue), "prefork", tmp_path)
