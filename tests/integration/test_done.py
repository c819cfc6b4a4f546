"""What is done when its process ends hears of nothing else; the rest of its batch does."""

import os
import signal
from collections import Counter

import pytest
from celery import VERSION
from celery.exceptions import (
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)

#: For Celery before 5.5, a process that a cold shutdown ends was lost.
CANCELS = VERSION >= (5, 5)

#: Celery 5.7 and newer look for the result of an ordinary task that was lost.
LOOKS_FIRST = VERSION >= (5, 7)

KINDS = ["early", "late", "rejecting", "unacknowledging"]


def calls_of(site, task, count=6):
    """Calls that make a batch; what they set off is reported with their ids."""
    calls = []
    for number in range(count):
        call = task.s(number)
        task_id = call.freeze().id
        call.link(site.module.link.s(task_id=task_id))
        call.link_error(site.module.errback.s())
        calls.append(call.apply_async())
    return calls


def heard(site, call):
    """What was said of a request, in the order of the alphabet."""
    reports = [report for report in site.reports.items if report.get("id") == call.id]
    return sorted(report.get("type", report["event"]) for report in reports)


def everything_sent_has_run(site, worker):
    """Wait for callbacks, and for a task that comes after them. What comes again may wait."""
    site.wait_until_active(worker, 0, waiting=None)
    ran = len(site.reports.of("last"))
    site.module.last.delay()
    site.reports.expect("last", ran + 1)
    site.wait_until_active(worker, 0, waiting=None)


@pytest.fixture
def site(deploy, broker, redis_url):
    # The worker has to find the states.
    return deploy("done_app", broker, redis_url)


def expect_marked(site, calls, kind):
    """The first three have ended as the body has marked them, and have heard of that only."""
    done, failed, also_done = calls[:3]
    for call in (done, also_done):
        assert call.get(timeout=30) == "done"
        assert heard(site, call) == ["ack", "link", "task-succeeded"]
    with pytest.raises(KeyError):
        failed.get(timeout=30)
    expected = ["ack", "errback", "task-failed"]
    if kind == "unacknowledging":
        expected = ["errback", "task-failed", "task-rejected"]
    assert heard(site, failed) == expected


def expect_settled(site, told, rest):
    """The handler of the first has run when the end came. All of them are done."""
    assert [call.get(timeout=30) for call in (told, *rest)] == ["done"] * 6
    assert heard(site, told) == ["ack", "link", "on_success", "task-succeeded"]
    for call in rest:
        assert heard(site, call) == ["ack", "link", "task-succeeded"]


def ran_again(site):
    """The ids of the calls that the body has had twice."""
    ran = Counter(task_id for report in site.reports.of("run") for task_id in report["ids"])
    return {task_id for task_id, count in ran.items() if count > 1}


def expect_failed_once(site, calls, error):
    for call in calls:
        with pytest.raises(error):
            call.get(timeout=30)
        assert {"errback": 1, "link": 0}.items() <= counts(site, call).items()


def counts(site, call):
    said = heard(site, call)
    return {what: said.count(what) for what in ("errback", "link", "task-failed")}


def ids_left(site):
    """Take all messages from the queue; return their ids."""
    ids = set()
    with site.app.connection_for_read() as connection:
        queue = site.app.amqp.queues[site.queue](connection.default_channel)
        while (message := queue.get()) is not None:
            ids.add(message.headers["id"])
            message.ack()
    return ids


def warnings(worker):
    return [line for line in worker.text.splitlines() if "had ended before" in line]


@pytest.mark.parametrize("name", ["limited", "settled"])
def test_the_hard_time_limit_fails_only_what_is_not_done(name, site):
    """It strikes in the body, which has marked three, or in the handler of the first of six."""
    with site.worker(concurrency=4) as worker:
        batches = {kind: calls_of(site, getattr(site.module, name)[kind]) for kind in KINDS}
        worker.wait_for_log("had ended before", 4)
        everything_sent_has_run(site, worker)
    back = ids_left(site) | ran_again(site)
    for kind, calls in batches.items():
        if name == "limited":
            expect_marked(site, calls, kind)
            rest = calls[3:]
        else:
            expect_settled(site, calls[0], calls[1:])
            rest = []
        if kind != "unacknowledging":
            expect_failed_once(site, rest, TimeLimitExceeded)
        # As an ordinary task, what a time limit does not acknowledge runs again, from 5.7 on.
        expected = {call.id for call in rest} if kind == "unacknowledging" else set()
        if LOOKS_FIRST:
            assert {call.id for call in calls} & back == expected
    count = 3 if name == "limited" else 6
    assert len(warnings(worker)) == 4
    assert all(f": {count} of 6 requests had ended before" in line for line in warnings(worker))


def test_a_lost_process_fails_only_what_is_not_done(site):
    gate = site.directory / "die"
    os.mkfifo(gate)
    with site.worker(concurrency=8) as worker:
        # Before 5.7, an ordinary task that rejects would run, and be killed, for ever.
        kinds = [kind for kind in KINDS if LOOKS_FIRST or kind != "rejecting"]
        twins = {kind: calls_of(site, site.module.plain_killed[kind], 1)[0] for kind in kinds}
        batches = {kind: calls_of(site, site.module.killed[kind]) for kind in KINDS}
        # Without that, Celery may give what they ran to other processes.
        site.wait_until_active(worker, len(twins) + 24, waiting=None)
        opened = os.open(gate, os.O_RDWR)  # It stays open, for those that come later.
        worker.wait_for_log("6 of 6 requests had ended before", 4)
        everything_sent_has_run(site, worker)
    os.close(opened)
    for kind, (told, *rest) in batches.items():
        expect_settled(site, told, rest)
        if LOOKS_FIRST:
            assert twins[kind].get(timeout=30) == "done"
            assert heard(site, twins[kind]) == heard(site, told)
    assert len(warnings(worker)) == 4
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
        # Also if it was to be terminated: it is done, and its link was sent.
        expect_marked(site, calls, kind)
        rest = [call for call in calls[3:] if call.id not in victims]
        if kind != "rejecting":
            expect_failed_once(site, rest, WorkerLostError)
        if victim == "running":
            with pytest.raises(TaskRevokedError):
                calls[index].get(timeout=30)
    assert len(warnings(worker)) == 4


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
            assert call.state == "SUCCESS"
        assert "task-failed" in heard(site, failed)
        assert failed.state == "FAILURE"
        # The broker was told too.
        assert not {done.id, failed.id, also_done.id} & left
        for call in rest:
            assert "task-succeeded" not in heard(site, call)
            if CANCELS:
                assert "task-cancelled" in heard(site, call)
                assert ("ack" in heard(site, call)) == (kind == "early")
                assert (call.id in left) == (kind != "early")
    assert len(warnings(worker)) == 4


def test_the_soft_time_limit_interrupts_nothing_after_the_body(site):
    """The signal comes while the handler of each request runs."""
    with site.worker(concurrency=1) as worker:
        calls = calls_of(site, site.module.softly)
        assert [call.get(timeout=30) for call in calls] == ["done"] * 6
        everything_sent_has_run(site, worker)
        # A later batch in the same process has its limit.
        late = calls_of(site, site.module.interrupted)
        site.reports.expect("task_failure")
        everything_sent_has_run(site, worker)
        expect_failed_once(site, late, SoftTimeLimitExceeded)
    for call in calls:
        assert heard(site, call) == ["ack", "link", "on_success", "task-succeeded"]
    assert site.messages_left() == 0


def test_the_hard_time_limit_interrupts_nothing_after_the_body(site):
    """The handler of each request takes longer than that. The log says so, once."""
    gate = site.directory / "go"
    os.mkfifo(gate)
    with site.worker(concurrency=1) as worker:
        calls = calls_of(site, site.module.unhurried)
        worker.wait_for_log("hard time limit \\(1.5s\\) exceeded after its body. Until 3.0s")
        opened = os.open(gate, os.O_RDWR)
        assert [call.get(timeout=30) for call in calls] == ["done"] * 6
        everything_sent_has_run(site, worker)
    os.close(opened)
    for call in calls:
        assert heard(site, call) == ["ack", "link", "on_success", "task-succeeded"]
    assert worker.text.count("exceeded after its body") == 1
    assert site.messages_left() == 0


@pytest.mark.gevent
def test_a_greenlet_fails_only_what_is_not_done(redis_url, deploy):
    """Whether a time limit ends it, or the request of one of its members."""
    gevent = pytest.importorskip("celery.concurrency.gevent")
    site = deploy("done_app", redis_url, redis_url)
    kinds = ["early", "late"]
    with site.worker("gevent", concurrency=20) as worker:
        limited = {kind: calls_of(site, site.module.limited[kind]) for kind in kinds}
        marked = {}
        if "terminate_job" in vars(gevent.TaskPool):
            marked = {kind: calls_of(site, site.module.marked[kind]) for kind in kinds}
            site.reports.expect("marked", 4)
            victims = [calls[4].id for calls in marked.values()]
            site.app.control.revoke(victims, terminate=True)
        worker.wait_for_log("3 of 6 requests had ended before", len(limited) + len(marked))
        everything_sent_has_run(site, worker)
    for kind in kinds:
        expect_marked(site, limited[kind], kind)
        expect_failed_once(site, limited[kind][3:], TimeLimitExceeded)
        if marked:
            expect_marked(site, marked[kind], kind)
            expect_failed_once(site, marked[kind][3:4], WorkerLostError)
    assert len(warnings(worker)) == len(limited) + len(marked)
    assert site.messages_left() == 0
