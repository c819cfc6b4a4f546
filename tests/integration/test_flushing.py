"""When batches are flushed on a real worker: by key, weight, idleness, and before calls expire."""

import os
from collections import Counter

import pytest
from celery.app import amqp
from celery.result import allow_join_result


def send(site, name, keys, **options):
    """Send a call for each of these keys."""
    task = site.app.tasks[name]
    with site.app.producer_pool.acquire(block=True) as producer:
        return [task.apply_async((), {"key": key}, producer=producer, **options) for key in keys]


def run(site, name, keys, **options):
    """Run a call for each key; return the trigger of each batch, and the keys in each."""
    with site.worker() as worker:
        send(site, name, keys, **options)
        batches = worker.wait_for_batches(len(keys))
        site.reports.expect("batch", len(batches))
        site.wait_until_active(worker, 0)
    assert site.messages_left() == 0
    assert worker.problems == []
    found = [report["keys"] for report in site.reports.of("batch")]
    return [batch["trigger"] for batch in batches], found


def check_keys(found, keys):
    """Each batch has one key, and each call is in one batch."""
    assert all(len(set(batch)) == 1 for batch in found)
    assert Counter(key for batch in found for key in batch) == Counter(keys)


def test_batches_of_fifty_keys_fill_under_default_settings(broker, deploy):
    keys = [number % 50 for number in range(3000)]
    triggers, found = run(deploy("flushing_app", broker), "by_key", keys)
    check_keys(found, keys)
    assert set(triggers) == {"size"}
    assert {len(batch) for batch in found} == {20}


@pytest.mark.rabbitmq
@pytest.mark.skipif(
    "create_missing_queue_type" not in amqp.Queues.__init__.__code__.co_varnames,
    reason="this Celery makes no quorum queues",
)
def test_batches_of_fifty_keys_fill_from_a_quorum_queue(rabbitmq_url, deploy):
    site = deploy("flushing_app", rabbitmq_url, task_default_queue_type="quorum")
    keys = [number % 50 for number in range(3000)]
    triggers, found = run(site, "by_key", keys)
    check_keys(found, keys)
    assert set(triggers) == {"size"}


def test_more_keys_than_are_buffered(broker, deploy):
    """Nothing waits for ever, and nothing is lost."""
    keys = [f"key-{number}" for number in range(1000)]
    triggers, found = run(deploy("flushing_app", broker), "many_keys", keys)
    check_keys(found, keys)
    assert Counter(triggers) == {"keys": 950, "interval": 50}


def test_a_batch_has_so_many_bytes_at_most(broker, deploy):
    """Those that the broker has: of hexadecimal digits, gzip makes about a half."""
    site = deploy("flushing_app", broker)
    keys = [os.urandom(1000).hex() for _ in range(30)]
    with site.worker() as worker:
        send(site, "by_weight", keys[:9])
        plain = worker.wait_for_batches(8)
        send(site, "by_weight", keys[9:], compression="gzip")
        packed = worker.wait_for_batches(20)[2:]
    assert [(batch["trigger"], batch["size"]) for batch in plain] == [("weight", "4")] * 2
    assert {batch["trigger"] for batch in packed} == {"weight"}
    assert all(6 <= int(batch["size"]) <= 9 for batch in packed)


def test_a_batch_leaves_when_nothing_comes(broker, deploy):
    triggers, found = run(deploy("flushing_app", broker), "idle", list(range(5)))
    assert (triggers, found) == (["idle"], [list(range(5))])


def test_a_batch_leaves_before_its_calls_expire(broker, deploy):
    triggers, found = run(deploy("flushing_app", broker), "expiring", list(range(5)), expires=10)
    assert (triggers, found) == (["expires"], [list(range(5))])


def test_a_key_function_that_raises_fails_its_call_alone(broker, backend, deploy):
    site = deploy("flushing_app", broker, backend)
    broken = site.module.broken
    with site.worker() as worker, allow_join_result():
        calls = [broken.delay(number) for number in (1, 0, 1)]
        with pytest.raises(ZeroDivisionError):
            calls[1].get(timeout=30)
        assert [calls[0].get(timeout=30), calls[2].get(timeout=30)] == [1, 1]
        site.wait_until_active(worker, 0)
    (problem,) = worker.problems
    assert "Task flushing_app.broken: flush_key fails for the call" in problem
    assert site.messages_left() == 0
