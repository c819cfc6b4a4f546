"""A process of the pool that ends in the middle of a batch."""

import os

import pytest
from celery import Task
from celery.exceptions import WorkerLostError

WAYS = ["kill", "_exit", "exit"]

#: With the name of the logger.
LOGGED = {"worker_log_format": "[%(asctime)s: %(levelname)s/%(processName)s] %(name)s: %(message)s"}


def triple(site, task, way):
    """Three calls, which make a batch; what they set off is reported with their ids."""
    calls = []
    for _ in range(3):
        call = task.s(way)
        task_id = call.freeze().id
        call.link(site.module.link.s(task_id=task_id))
        call.link_error(site.module.errback.s())
        calls.append(call.apply_async())
    return calls


@pytest.fixture
def let_die():
    """Have the processes end, now that the worker knows that so many requests run in them.

    Without that, Celery may give what they ran to other processes.
    """
    opened = []

    def let_die(site, worker, count):
        site.wait_until_active(worker, count)
        # It stays open, for those that run again.
        opened.append(os.open(site.directory / "die", os.O_RDWR))

    yield let_die
    for file in opened:
        os.close(file)


def deploy_mortal(deploy, broker, backend):
    site = deploy("lost_app", broker, backend, **LOGGED)
    os.mkfifo(site.directory / "die")
    return site


def ids_of(*batches):
    return sorted(call.id for calls in batches for call in calls)


def reported(site, event):
    return sorted(report["id"] for report in site.reports.of(event))


def expect_loss(calls):
    for call in calls:
        with pytest.raises(WorkerLostError):
            call.get(timeout=30)
        assert call.state == "FAILURE"


def everything_sent_has_run(site, count):
    """Wait for callbacks, and for a task that comes after them."""
    site.reports.expect("errback", count)
    site.module.last.delay()
    site.reports.expect("last")


def lines_on(worker, task):
    """The errors in the log for batches of this task."""
    return [
        line
        for line in worker.problems
        if f" celery_batches.worker.endings: Batch {task.name}[" in line
    ]


def test_every_request_of_a_lost_batch_fails_once(broker, backend, deploy, let_die):
    """So does the one that the body has marked, since its result was not stored."""
    site = deploy_mortal(deploy, broker, backend)
    gate = site.directory / "go"
    os.mkfifo(gate)
    lost = site.module.lost
    # So many processes that none of the new ones is needed: Celery may take 5 seconds to see that
    # one of them has ended.
    with site.worker(concurrency=5) as worker:
        running = [site.module.gated.delay(i) for i in range(2)]
        site.reports.expect("gated")
        batches = [triple(site, lost, way) for way in WAYS]
        let_die(site, worker, 2 + 9)
        for calls in batches:
            expect_loss(calls)
        everything_sent_has_run(site, 9)
        gate.write_text("now")
        assert [call.get(timeout=30) for call in running] == [0, 1]
        site.wait_until_active(worker, 0)
    assert reported(site, "errback") == ids_of(*batches)
    assert reported(site, "link") == []
    # As in Celery, each has its own signal: nothing is left of the run of the batch.
    assert reported(site, "task_failure") == ids_of(*batches)
    bodies = [report["ids"] for report in site.reports.of("die")]
    assert sorted(bodies) == sorted([call.id for call in calls] for calls in batches)
    # One line for each batch; all that Celery adds is one for each process.
    lines = lines_on(worker, lost)
    assert len(lines) == 3
    assert all("of 3 requests was lost: Worker exited prematurely: " in line for line in lines)
    assert sum("signal 9" in line for line in lines) == 1
    others = [line for line in worker.problems if line not in lines]
    assert [line for line in others if "exited with" not in line] == []
    assert site.messages_left() == 0


@pytest.mark.parametrize(
    "name",
    [
        "redelivered",
        pytest.param(
            "retried",
            marks=pytest.mark.skipif(
                not hasattr(Task, "retry_on_worker_lost"), reason="this Celery has no such option"
            ),
        ),
    ],
)
def test_lost_requests_run_again_if_the_options_say_so(name, broker, backend, deploy, let_die):
    site = deploy_mortal(deploy, broker, backend)
    task = getattr(site.module, name)
    # All are in the queue before the first comes again.
    batches = [triple(site, task, way) for way in WAYS]
    with site.worker(concurrency=6) as worker:
        let_die(site, worker, 9)
        for calls, way in zip(batches, WAYS, strict=True):
            assert [call.get(timeout=30) for call in calls] == [way] * 3
        site.reports.expect("link", 9)
        site.wait_until_active(worker, 0)
    assert reported(site, "link") == ids_of(*batches)
    assert reported(site, "errback") == []
    for again in (False, True):
        runs = [report for report in site.reports.of("run") if report["again"] is again]
        assert sorted(i for report in runs for i in report["ids"]) == ids_of(*batches)
    assert len(lines_on(worker, task)) == 3
    assert site.messages_left() == 0


def test_a_result_stored_before_the_loss_stays(redis_url, deploy, let_die):
    site = deploy_mortal(deploy, redis_url, redis_url)
    with site.worker() as worker:
        first, *others = triple(site, site.module.marked, "kill")
        let_die(site, worker, 3)
        expect_loss(others)
        everything_sent_has_run(site, 2)
        assert first.get(timeout=30) == "kill"
        assert first.state == "SUCCESS"
        site.wait_until_active(worker, 0)
    assert reported(site, "link") == [first.id]
    assert reported(site, "errback") == ids_of(others)
    assert len(lines_on(worker, site.module.marked)) == 1
    assert site.messages_left() == 0


def test_exit_from_a_thread_fails_the_requests_and_not_the_worker(broker, backend, deploy, let_die):
    site = deploy_mortal(deploy, broker, backend)
    with site.worker("threads") as worker:
        calls = triple(site, site.module.lost, "exit")
        let_die(site, worker, 3)
        expect_loss(calls)
        site.module.plain.delay("exit")
        site.reports.expect("plain")
        everything_sent_has_run(site, 3)
        # Neither a batch nor an ordinary task ends it: it has all its threads.
        again = triple(site, site.module.lost, "exit")
        expect_loss(again)
        everything_sent_has_run(site, 6)
        # The ordinary one: that it has ended, Celery never notices.
        site.wait_until_active(worker, 1)
    assert reported(site, "errback") == ids_of(calls, again)
    assert len(lines_on(worker, site.module.lost)) == 2
    assert site.messages_left() == 0
