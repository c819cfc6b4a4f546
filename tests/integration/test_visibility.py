"""Redis delivers again what waits in the worker for too long: the worker says so at its start."""

import time
from collections import Counter

import pytest
from harness import DEADLINE
from kombu.utils.uuid import uuid

pytestmark = pytest.mark.redis

CALLS = 4
NUMBERS = set(range(CALLS))


def test_a_worker_warns_of_an_interval_beyond_the_visibility_timeout(redis_url, deploy):
    options = {"global_keyprefix": "visibility", "visibility_timeout": 10}
    site = deploy("signals_app", redis_url, broker_transport_options=options)
    with site.worker() as worker:
        worker.wait_for_log(r"WARNING.*Task late: flush_interval is 600s, but .* of 10s")


@pytest.mark.parametrize(
    ("kind", "mode", "pool"),
    [("batch", "early", "prefork"), ("batch", "late", "threads"), ("ordinary", "late", "prefork")],
)
def test_calls_that_two_workers_have_after_it(redis_url, deploy, kind, mode, pool):
    """They run once or more, none is stuck, and acknowledging one twice does no harm.

    Batches have them in their buffers, and ordinary tasks in the timer, until their ETA.
    """
    queue = f"test-{uuid()}"
    transport = {"global_keyprefix": f"{queue}:", "visibility_timeout": 1}
    config = {"task_default_queue": queue, "broker_transport_options": transport}
    site = deploy("held_app", redis_url, **config)
    options = {"countdown": site.module.WAIT} if kind == "ordinary" else {}
    with site.worker(pool) as first, site.worker(pool) as second:
        for number in range(CALLS):
            site.app.tasks[f"{kind}_{mode}"].apply_async((number,), **options)
        deliver_again(site)
        site.reports.expect("run", CALLS, each=lambda report: len(report["numbers"]))
        for worker in (first, second):
            site.wait_until_active(worker, 0)
        assert site.messages_left() == 0
    assert {n for report in site.reports.of("run") for n in report["numbers"]} == NUMBERS
    assert first.problems == second.problems == []


def deliver_again(site):
    """Have Redis deliver each call twice: to both workers, or to one of them."""
    deadline = time.monotonic() + DEADLINE
    with site.app.connection_for_write() as connection:
        # As any worker does: those of older releases every 100 seconds only.
        qos = connection.default_channel.qos
        while min(received(site)[number] for number in NUMBERS) < 2:
            qos.restore_visible(num=None, interval=1)
            assert time.monotonic() < deadline


def received(site):
    return Counter(n for report in site.reports.of("received") for n in report["numbers"])
