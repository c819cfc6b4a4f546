"""Batches and ordinary tasks on every pool and broker."""

from collections import Counter

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_batches import Batches

POOLS = [
    "prefork",
    "threads",
    "solo",
    pytest.param("gevent", marks=pytest.mark.gevent),
    pytest.param("eventlet", marks=pytest.mark.eventlet),
]


@pytest.mark.parametrize("pool", POOLS)
def test_batches_are_flushed_by_size_and_by_interval_and_every_caller_gets_its_result(
    pool, broker, backend, deploy
):
    # In Celery's loop for gevent and eventlet, each message from AMQP waits for one of the ticks
    # by which heartbeats are sent, and that is 10 messages a second at most. That loop without
    # heartbeats is as fast as the others.
    config = {"broker_heartbeat": 0} if pool in ("gevent", "eventlet") else {}
    site = deploy("clicks_app", broker, backend, **config)
    double, triple = site.module.double, site.module.triple
    doubles = [double.delay(i) for i in range(24)]
    with site.worker(pool) as worker:
        triples = [triple.delay(i) for i in range(3)]
        inverses = [site.module.inverse.delay(i) for i in (0, 1, 2, 4)]
        assert [result.get(timeout=30) for result in doubles] == [i * 2 for i in range(24)]
        assert [result.get(timeout=30) for result in triples] == [i * 3 for i in range(3)]
        assert [result.get(timeout=30) for result in inverses[1:]] == [1, 0.5, 0.25]
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            inverses[0].get(timeout=30)
        batches = [b for b in worker.wait_for_batches(28) if b["name"].endswith("double")]
        site.wait_until_active(worker, 0)
    assert Counter((batch["size"], batch["trigger"]) for batch in batches) == {
        ("10", "size"): 2,
        ("4", "interval"): 1,
    }
    assert {batch["ending"] for batch in batches} == {"succeeded"}
    assert sorted(i for report in site.reports.of("double") for i in report["args"]) == list(
        range(24)
    )
    assert site.messages_left() == 0


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_in_memory_broker(pool):
    app = Celery("memory", broker="memory://", backend="cache+memory://", set_as_current=False)
    seen = []

    @app.task(base=Batches, flush_every=10, flush_interval=0.5, name="double", shared=False)
    def double(requests):
        seen.append([request.args[0] for request in requests])
        for request in requests:
            app.backend.mark_as_done(request.id, request.args[0] * 2, request=request)

    @app.task(name="triple", shared=False)
    def triple(number):
        return number * 3

    with start_worker(app, pool=pool, concurrency=2, perform_ping_check=False):
        doubles = [double.delay(i) for i in range(24)]
        triples = [triple.delay(i) for i in range(3)]
        assert [result.get(timeout=30) for result in doubles] == [i * 2 for i in range(24)]
        assert [result.get(timeout=30) for result in triples] == [i * 3 for i in range(3)]
    assert sorted(map(len, seen)) == [4, 10, 10]
    assert sorted(i for args in seen for i in args) == list(range(24))
