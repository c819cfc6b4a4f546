"""RabbitMQ takes back what a worker does not acknowledge in time."""

import os
from collections.abc import Iterator

import brokers
import pytest
from celery import VERSION

CALLS = 3

#: In milliseconds. RabbitMQ looks at it once a minute, or as often as its channels are told.
OPTIONS = ("-rabbit consumer_timeout 3000", "-rabbit channel_tick_interval 500")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ that waits for three seconds, and not for half an hour."""
    try:
        server = brokers.start_rabbitmq(tmp_path_factory.mktemp("impatient"), None, *OPTIONS)
    except brokers.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}, and CI has to run every test")
        pytest.skip(str(missing))
    yield server.url
    server.kill()


@pytest.mark.rabbitmq
@pytest.mark.skipif(VERSION < (5, 5), reason="this Celery cannot consume from quorum queues")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize(("name", "options"), [("batch", {}), ("ordinary", {"countdown": 3600})])
def test_calls_that_wait_for_longer_than_that(impatient, deploy, name, options, pool):
    """The worker ends, or with RabbitMQ 4.3 it reconnects: nothing has run, and nothing is lost.

    It logs nothing that it does not log for ordinary tasks, but the warning at its start.
    """
    site = deploy("waits_app", impatient, batches_consumer_timeout=3)
    task = getattr(site.module, name)
    with site.worker(pool, exits=None) as worker:
        worker.wait_for_log(
            r"WARNING.*Task waits_app.batch: flush_interval is 3600s, but .* within 3s"
        )
        for number in range(CALLS):
            task.apply_async((number,), **options)
        worker.wait_for_log("PreconditionFailed|ConsumerCancelled")
    assert [line for line in worker.problems if "Unrecoverable error" not in line] == []
    site.wait_for_messages(CALLS)
    assert site.reports.of("run") == []
