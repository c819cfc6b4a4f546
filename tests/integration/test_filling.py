"""Batches fill under default settings, from a queue that holds enough of them."""

from collections import Counter

import pytest
from celery.app import amqp


def send(site, calls):
    """Send many calls of each task, as in a queue that many share: in turn."""
    with site.app.producer_pool.acquire(block=True) as producer:
        while calls := {name: count for name, count in calls.items() if count}:
            for name in calls:
                site.app.tasks[name].apply_async((1,), producer=producer)
                calls[name] -= 1


@pytest.mark.parametrize(
    "calls",
    [
        {"by_10": 200},
        {"by_100": 500},
        {"by_1000": 3000},
        {"late": 500},
        *({f"{size}_{n}": 3 * size for n in range(3)} for size in (10, 100, 1000)),
    ],
    ids=["10", "100", "1000", "late", "three of 10", "three of 100", "three of 1000"],
)
def test_batches_fill_under_default_settings(calls, broker, deploy):
    site = deploy("filling_app", broker)
    send(site, calls)
    with site.worker() as worker:
        batches = worker.wait_for_batches(sum(calls.values()))
        site.wait_until_active(worker, 0)
    sizes = Counter((batch["name"], int(batch["size"])) for batch in batches)
    expected = {}
    for name, count in calls.items():
        size = site.app.tasks[name].flush_every
        expected[name, size] = count // size
    assert sizes == expected


@pytest.mark.rabbitmq
@pytest.mark.skipif(
    "create_missing_queue_type" not in amqp.Queues.__init__.__code__.co_varnames,
    reason="this Celery makes no quorum queues",
)
@pytest.mark.parametrize("name", ["by_100", "late"])
def test_batches_fill_from_a_quorum_queue(name, rabbitmq_url, deploy):
    site = deploy("filling_app", rabbitmq_url, task_default_queue_type="quorum")
    send(site, {name: 600})
    with site.worker() as worker:
        batches = worker.wait_for_batches(600)
        site.wait_until_active(worker, 0)
        assert "Prefetch count is now static" in worker.text
    assert {int(batch["size"]) for batch in batches} == {100}
