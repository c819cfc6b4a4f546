"""Workers whose timer, messages and callbacks come at the same time, on different threads."""

from collections import Counter

import pytest

CALLS = 2000


def filesystem(request):
    """Without an event loop: the timer and the results of prefork have threads of their own."""
    return "filesystem://"


def rabbitmq(request):
    return request.getfixturevalue("rabbitmq_url")


@pytest.mark.parametrize(
    ("pool", "find_broker"),
    [
        ("prefork", filesystem),
        ("threads", filesystem),
        pytest.param("gevent", rabbitmq, marks=[pytest.mark.rabbitmq, pytest.mark.gevent]),
    ],
)
def test_each_call_is_run_once(pool, find_broker, request, deploy, tmp_path):
    config = {}
    if find_broker is filesystem:
        folders = ("data_folder_in", "data_folder_out", "control_folder")
        config["broker_transport_options"] = {
            folder: str(tmp_path / folder[:4]) for folder in folders
        }
        config["worker_enable_remote_control"] = False
        for folder in ("data", "cont"):
            (tmp_path / folder).mkdir()
    if pool == "gevent":
        config["broker_heartbeat"] = 0  # With it, its loop takes in 10 messages a second.
    site = deploy("stress_app", find_broker(request), **config)
    tick = site.module.tick
    for number in range(CALLS // 2):
        tick.delay(number)
    # With one greenlet, the pool that the consumer waits for is always full.
    with site.worker(pool, concurrency=1 if pool == "gevent" else 3) as worker:
        for number in range(CALLS // 2, CALLS):
            tick.delay(number)
        reports = site.reports.expect("tick", CALLS, each=lambda said: len(said["numbers"]))
        assert {batch["trigger"] for batch in worker.wait_for_batches(CALLS)} == {
            "size",
            "interval",
        }
        if config.get("worker_enable_remote_control", True):
            site.wait_until_active(worker, 0)
    assert Counter(n for said in reports for n in said["numbers"]) == Counter(range(CALLS))
    assert max(len(said["numbers"]) for said in reports) == 3
    assert worker.problems == []
    assert site.messages_left() == 0
