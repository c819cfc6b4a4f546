"""The connection to the broker is lost, again and again: nothing is lost with it, or run twice."""

from collections import Counter

import pytest
from celery import VERSION
from faults.proxy import Proxy

CUTS = 3

GREEN = ("gevent", "eventlet")


def wait_for(reports, event, wanted):
    """Wait until there are reports of that many different calls."""

    def count(items):
        return len({n for item in items if item["event"] == event for n in item["numbers"]})

    reports.wait(count, wanted, what=f"calls in reports of {event!r}")


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("early", "prefork"),
        ("late", "prefork"),
        ("early", "threads"),
        ("late", "threads"),
        ("early", "solo"),
        pytest.param("late", "gevent", marks=pytest.mark.gevent),
        pytest.param("late", "eventlet", marks=pytest.mark.eventlet),
    ],
)
def test_a_connection_is_lost_while_the_buffer_is_part_filled(
    name, pool, broker, deploy, monkeypatch
):
    if pool == "threads" and broker.startswith("amqp") and VERSION < (5, 7):
        pytest.skip("this Celery mixes up what its threads say on AMQP after a reconnect")
    options = []
    if pool in GREEN and broker.startswith("amqp"):
        # Celery's event `worker-heartbeat` may be the first to meet the lost connection. Its
        # greenlet then goes on for ever on a channel that is closed, with the lock of all events,
        # for which the consumer waits. So it is with ordinary tasks alone.
        options.append("--without-heartbeat")
    # By default, Celery 5.7 does so too.
    site = deploy("faults_app", broker, worker_enable_prefetch_count_reduction=False)
    task = getattr(site.module, name)
    sent = waiting = 0
    with Proxy(broker) as proxy:
        # For the worker, not for the calls.
        monkeypatch.setenv("CELERY_BROKER_URL", proxy.url)
        site.module.app.conf.broker_url = broker
        with site.worker(pool, *options) as worker:
            monkeypatch.delenv("CELERY_BROKER_URL")
            for cut in range(1, CUTS + 1):
                # Two batches that are run at once, and four calls that wait in the buffer: unless
                # the machine is so busy that their interval is over before all have been sent.
                for number in range(sent, sent + 24):
                    task.delay(number)
                wait_for(site.reports, "run", sent + 20)
                # Redis forgets what is on the wire when a connection is cut: any task is lost then.
                wait_for(site.reports, "received", sent + 24)
                # All that has run is acknowledged.
                waiting += site.wait_until_active(worker, 0, waiting=None)
                assert proxy.cut() >= 1
                worker.wait_for_log(r"Connected to ", cut + 1)
                # The interval goes on being kept, on the connection that has taken its place.
                sent += 24
                wait_for(site.reports, "run", sent)
            site.wait_until_active(worker, 0)
        ran = Counter(n for report in site.reports.of("run") for n in report["numbers"])
    assert sorted(ran) == list(range(sent))
    assert max(len(report["numbers"]) for report in site.reports.of("run")) == 10
    assert waiting > 0, "the buffer was never part-filled"
    # Those of the buffer are delivered again, and run once.
    assert [number for number, runs in ran.items() if runs > 1] == []
    assert site.messages_left() == 0
