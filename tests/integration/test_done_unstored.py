"""What is done when its process ends hears of nothing else, though the worker finds no result."""

import os
import signal

import pytest
from celery import VERSION
from integration.test_done import (
    KINDS,
    calls_of,
    counts,
    everything_sent_has_run,
    heard,
    ids_left,
    warnings,
)

#: For Celery before 5.5, a process that a cold shutdown ends was lost.
CANCELS = VERSION >= (5, 5)


@pytest.fixture(params=["ignored", "rpc"])
def site(request, deploy, redis_url, rabbitmq_url):
    if request.param == "ignored":
        return deploy("done_app", redis_url, redis_url, task_ignore_result=True)
    return deploy("done_app", rabbitmq_url, "rpc://")


def expect_marked(site, calls, kind):
    """The first three have ended as the body has marked them, and have heard of that only."""
    done, failed, also_done = calls[:3]
    for call in (done, also_done):
        assert heard(site, call) == ["ack", "link", "task-succeeded"]
    expected = ["ack", "errback", "task-failed"]
    if kind == "unacknowledging":
        expected = ["errback", "task-failed", "task-rejected"]
    assert heard(site, failed) == expected


def expect_settled(site, told, rest):
    """The handler of the first has run when the end came. All of them are done."""
    assert heard(site, told) == ["ack", "link", "on_success", "task-succeeded"]
    for call in rest:
        assert heard(site, call) == ["ack", "link", "task-succeeded"]


def expect_failed(site, calls):
    for call in calls:
        assert {"errback": 1, "link": 0}.items() <= counts(site, call).items()


@pytest.mark.parametrize("name", ["limited", "settled"])
def test_the_hard_time_limit_fails_only_what_is_not_done(name, site):
    with site.worker(concurrency=4) as worker:
        batches = {kind: calls_of(site, getattr(site.module, name)[kind]) for kind in KINDS}
        worker.wait_for_log("had ended before", 4)
        everything_sent_has_run(site, worker)
    for kind, calls in batches.items():
        if name == "limited":
            expect_marked(site, calls, kind)
            if kind != "unacknowledging":
                expect_failed(site, calls[3:])
        else:
            expect_settled(site, calls[0], calls[1:])
    count = 3 if name == "limited" else 6
    assert all(f": {count} of 6 requests had ended before" in line for line in warnings(worker))


def test_a_lost_process_fails_only_what_is_not_done(site):
    gate = site.directory / "die"
    os.mkfifo(gate)
    with site.worker(concurrency=4) as worker:
        batches = {kind: calls_of(site, site.module.killed[kind]) for kind in KINDS}
        # Without that, Celery may give what they ran to other processes.
        site.wait_until_active(worker, 24, waiting=None)
        opened = os.open(gate, os.O_RDWR)
        worker.wait_for_log("6 of 6 requests had ended before", 4)
        everything_sent_has_run(site, worker)
    os.close(opened)
    for told, *rest in batches.values():
        expect_settled(site, told, rest)
    assert site.messages_left() == 0


@pytest.mark.parametrize("victim", ["done", "running"])
def test_terminating_a_request_fails_only_what_is_not_done(victim, site):
    with site.worker(concurrency=4) as worker:
        batches = {kind: calls_of(site, site.module.marked[kind]) for kind in KINDS}
        site.reports.expect("marked", 4)
        site.wait_until_active(worker, 24, waiting=None)
        index = 0 if victim == "done" else 4
        victims = [calls[index].id for calls in batches.values()]
        site.app.control.revoke(victims, terminate=True, signal="SIGKILL")
        worker.wait_for_log("3 of 6 requests had ended before", 4)
        everything_sent_has_run(site, worker)
    for kind, calls in batches.items():
        expect_marked(site, calls, kind)
        if kind != "rejecting":
            expect_failed(site, [call for call in calls[3:] if call.id not in victims])


def test_a_cold_shutdown_cancels_only_what_is_not_done(site):
    with site.worker(concurrency=4) as worker:
        batches = {kind: calls_of(site, site.module.marked[kind]) for kind in KINDS}
        site.reports.expect("marked", 4)
        site.wait_until_active(worker, 24, waiting=None)
        worker.process.send_signal(signal.SIGQUIT)
        worker.process.wait(40)
    left = ids_left(site)
    for kind, (done, failed, also_done, *rest) in batches.items():
        for call in (done, also_done):
            assert set(heard(site, call)) - {"link"} == {"ack", "task-succeeded"}
        assert "task-failed" in heard(site, failed)
        assert not {done.id, failed.id, also_done.id} & left
        for call in rest:
            assert "task-succeeded" not in heard(site, call)
            if CANCELS:
                assert (call.id in left) == (kind != "early")


@pytest.mark.skipif(VERSION < (5, 7), reason="this Celery always forks")
def test_processes_that_are_not_forked_leave_it_to_the_result_backend(deploy, redis_url):
    """They share no memory. What is stored has ended."""
    site = deploy("done_app", redis_url, redis_url, worker_pool_start_method="spawn")
    gate = site.directory / "die"
    os.mkfifo(gate)
    with site.worker(concurrency=2) as worker:
        told, *rest = calls_of(site, site.module.killed["early"])
        site.wait_until_active(worker, 6, waiting=None)
        opened = os.open(gate, os.O_RDWR)
        worker.wait_for_log("6 of 6 requests had ended before")
        everything_sent_has_run(site, worker)
    os.close(opened)
    expect_settled(site, told, rest)
    assert site.messages_left() == 0


@pytest.mark.gevent
def test_a_greenlet_fails_only_what_is_not_done(deploy, redis_url):
    pytest.importorskip("celery.concurrency.gevent")
    site = deploy("done_app", redis_url, redis_url, task_ignore_result=True)
    with site.worker("gevent", concurrency=10) as worker:
        batches = {kind: calls_of(site, site.module.limited[kind]) for kind in ("early", "late")}
        worker.wait_for_log("3 of 6 requests had ended before", 2)
        everything_sent_has_run(site, worker)
    for kind, calls in batches.items():
        expect_marked(site, calls, kind)
        expect_failed(site, calls[3:])
    assert site.messages_left() == 0
