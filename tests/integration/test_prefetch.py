"""What a worker lets the broker deliver ahead, while its pool is kept busy by a lock.

The worker has two processes and the default multiplier of 4, so a budget of 8 tasks. A message is
"held" when it is not in the queue any more and not acknowledged.
"""

import contextlib
import fcntl
import re
import time
from collections import Counter

import pytest
from celery.app import defaults
from faults.proxy import Proxy
from integration.test_filling import send

BUDGET = 8


@contextlib.contextmanager
def lock(site):
    """Bodies wait until the end of this."""
    with open(site.directory / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prefetch_count(site, worker):
    inspect = site.app.control.inspect(destination=[worker.node], timeout=5)
    while (stats := inspect.stats()) is None:  # Redis: not listening yet.
        pass
    return stats[worker.node]["prefetch_count"]


def wait_for_prefetch_count(site, worker, wanted):
    deadline = time.monotonic() + 40
    while (count := prefetch_count(site, worker)) != wanted:
        assert time.monotonic() < deadline, f"the prefetch count is {count}, and not {wanted}"


def run_all(site, worker, calls):
    """Wait until that many calls were run, and the worker knows."""
    worker.wait_for_batches(calls)
    site.wait_until_active(worker, 0)


def sizes(worker):
    return Counter(int(batch["size"]) for batch in worker.batches)


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("name", ["early", "late"])
def test_what_a_worker_holds_is_bounded(name, shortcuts, broker, deploy):
    """It holds (budget + 1) batches, however deep the queue, and whether or not with shortcuts."""
    site = deploy("prefetch_app", broker, batches_shortcuts=shortcuts)
    with site.worker() as worker:
        with lock(site):
            send(site, {name: 2000})
            # Two batches run. With early acks they are not counted any more.
            held = (BUDGET + 1) * 100
            taken = held if name == "late" else held + 200
            site.wait_for_messages(2000 - taken)
            wait_for_prefetch_count(site, worker, held)
        run_all(site, worker, 2000)
        assert sizes(worker) == {100: 20}
        # A batch that is acknowledged makes way for the next.
        wait_for_prefetch_count(site, worker, BUDGET + 100)


def test_three_batch_tasks_share_the_budget(broker, deploy):
    """All that they hold is bounded, and each fills its batches."""
    site = deploy("prefetch_app", broker)
    calls = {"late": 500, "early": 500, "big": 2000}
    with site.worker() as worker:
        with lock(site):
            send(site, calls)
            site.reports.expect("started", 2)
            count = prefetch_count(site, worker)
            assert count <= BUDGET + 100 + 100 + 1000 + BUDGET * 999
        run_all(site, worker, 3000)
        assert sizes(worker) == {100: 10, 1000: 2}


def test_ordinary_tasks_keep_their_prefetch(broker, deploy):
    """A batch task that fills no batch leaves the others as they are, as does a full buffer."""
    site = deploy("prefetch_app", broker)
    with site.worker() as worker:
        with lock(site):
            for number in range(30):
                site.module.ordinary.delay(number)
            site.reports.expect("ordinary", 2)
            site.wait_for_messages(30 - BUDGET)
            assert prefetch_count(site, worker) == BUDGET
        site.reports.expect("ordinary", 30)
        # More than the budget in a buffer, and ordinary tasks go on running.
        for _ in range(2 * BUDGET):
            site.module.big.delay()
        for number in range(10):
            site.module.ordinary.delay(number)
        site.reports.expect("ordinary", 40)
        assert worker.batches == []
        site.wait_until_active(worker, 0, waiting=2 * BUDGET)


def test_the_room_goes_when_nothing_comes_in(broker, deploy):
    """The interval after which a batch is flushed ends its room as well."""
    site = deploy("prefetch_app", broker)
    with site.worker() as worker:
        assert prefetch_count(site, worker) == BUDGET
        for _ in range(100):
            site.module.short.delay()
        worker.wait_for_batches(100)
        wait_for_prefetch_count(site, worker, BUDGET)


def test_no_limit(broker, deploy):
    """With a multiplier of 0 the worker holds all there is, and batches fill."""
    site = deploy("prefetch_app", broker, worker_prefetch_multiplier=0)
    with site.worker() as worker:
        with lock(site):
            send(site, {"late": 1500})
            site.wait_for_messages(0)
            assert prefetch_count(site, worker) == 0
        run_all(site, worker, 1500)
        assert sizes(worker) == {100: 15}


def test_the_pool_grows_and_shrinks(broker, deploy):
    """The budget follows the pool as Celery has it, and the room stays."""
    site = deploy("prefetch_app", broker)
    with site.worker() as worker:
        control = {"destination": [worker.node], "reply": True, "timeout": 20}
        with lock(site):
            send(site, {"late": 1000})
            site.wait_for_messages(1000 - 9 * 100)
            assert site.app.control.pool_grow(1, **control)
            site.wait_for_messages(0)
            wait_for_prefetch_count(site, worker, 12 + 100 + 10 * 99)
        run_all(site, worker, 1000)
        # Only processes that are idle can go.
        wait_for_prefetch_count(site, worker, 12 + 100)
        assert site.app.control.pool_shrink(1, **control)
        with lock(site):
            send(site, {"late": 1000})
            site.wait_for_messages(1000 - 9 * 100)
            wait_for_prefetch_count(site, worker, 9 * 100)
        run_all(site, worker, 2000)
        assert sizes(worker) == {100: 20}


def test_autoscale(broker, deploy):
    """The pool grows while there is work, and batches fill."""
    site = deploy("prefetch_app", broker)
    with site.worker("prefork", "--autoscale=3,1") as worker:
        with lock(site):
            send(site, {"late": 1000})
            site.reports.expect("started", 3)
            # Three processes: a budget of 12.
            site.wait_for_messages(0)
        run_all(site, worker, 1000)
        assert sizes(worker) == {100: 10}


def test_a_limit_of_eta_tasks(broker, deploy):
    """worker_eta_task_limit bounds what waits for its ETA, and batches fill beside it."""
    site = deploy("prefetch_app", broker, worker_eta_task_limit=10)
    for _ in range(6):
        site.module.big.apply_async(countdown=3600)
    send(site, {"late": 500})
    with site.worker() as worker:
        run_all(site, worker, 500)
        assert sizes(worker) == {100: 5}
        limited = defaults.NAMESPACES["worker"].get("eta_task_limit") is not None
        wait_for_prefetch_count(site, worker, (10 if limited else BUDGET + 6) + 100)


@pytest.mark.redis
@pytest.mark.skipif(
    "disable_prefetch" not in defaults.NAMESPACES["worker"],
    reason="this Celery has no worker_disable_prefetch",
)
def test_disabled_prefetch_counts_a_batch_as_one(redis_url, deploy):
    """A worker takes in as many batches as it has processes, and fills each."""
    site = deploy("prefetch_app", redis_url, worker_disable_prefetch=True)
    with site.worker() as worker:
        with lock(site):
            send(site, {"late": 500})
            site.reports.expect("started", 2)
            site.wait_for_messages(300)
        run_all(site, worker, 500)
        assert sizes(worker) == {100: 5}


@pytest.mark.rabbitmq
def test_the_broker_is_told_of_batches_not_of_messages(rabbitmq_url, deploy):
    """Each change of the prefetch count is a round trip on AMQP."""
    site = deploy("prefetch_app", rabbitmq_url)
    send(site, {"early": 2000})
    with site.worker(loglevel="DEBUG") as worker:
        run_all(site, worker, 2000)
    changes = re.findall(r"basic\.qos: prefetch_count->\d+", worker.text)
    assert 2 <= len(changes) <= 2 * 20 + 4


@pytest.mark.rabbitmq
def test_prefetch_that_is_reduced_after_a_reconnect(rabbitmq_url, deploy, monkeypatch):
    """Celery takes in less while old batches still run, and restores it: batches fill all along.

    Celery 5.7 does so on AMQP only.
    """
    broker = rabbitmq_url
    site = deploy("prefetch_app", broker)
    with Proxy(broker) as proxy:
        monkeypatch.setenv("CELERY_BROKER_URL", proxy.url)  # For the worker, not for the calls.
        site.module.app.conf.broker_url = broker
        with site.worker() as worker:
            monkeypatch.delenv("CELERY_BROKER_URL")
            with lock(site):
                send(site, {"early": 200})
                site.reports.expect("started", 2)
                site.wait_for_messages(0)
                site.wait_until_active(worker, 200)
                assert proxy.cut() >= 1
                worker.wait_for_log("Temporarily reducing the prefetch count to 4")
                worker.wait_for_log("Connected to ", 2)
                wait_for_prefetch_count(site, worker, 4)
                send(site, {"early": 900})
            worker.wait_for_log("Prefetch count has been restored to the maximum of 8")
            worker.wait_for_batches(1100)
            assert sizes(worker) == {100: 11}
            wait_for_prefetch_count(site, worker, BUDGET + 100)


def test_queues_come_and_go(broker, deploy):
    """A queue that is added is batched too; one that is cancelled leaves no call behind."""
    site = deploy("prefetch_app", broker)
    other = (
        f"{site.queue}:{site.queue}-other" if broker.startswith("redis") else f"{site.queue}-other"
    )
    control, task = site.app.control, site.module.late
    with site.worker() as worker:
        reply = {"destination": [worker.node], "reply": True, "timeout": 20}
        while not control.add_consumer(other, **reply):
            pass
        for _ in range(60):
            task.delay()
            task.apply_async(queue=other)
        worker.wait_for_batches(100)
        assert sizes(worker) == {100: 1}
        site.wait_until_active(worker, 0, waiting=20)
        assert control.cancel_consumer(other, **reply)
        task.apply_async(queue=other)
        for _ in range(80):
            task.delay()
        worker.wait_for_batches(200)
        assert sizes(worker) == {100: 2}
        # What came from the queue that is gone has run with the rest; what comes now stays there.
        while control.add_consumer(other, **reply) is None:
            pass
        site.wait_until_active(worker, 0, waiting=1)
