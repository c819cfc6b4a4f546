"""What is done when its process ends hears of nothing else; the rest of its batch does."""

import os

import pytest
from celery import VERSION
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request

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


def runs(site):
    return [report["ids"] for report in site.reports.of("run")]


def everything_sent_has_run(site, worker):
    site.wait_until_active(worker, 0)
    site.module.last.delay()
    site.reports.expect("last")
    site.wait_until_active(worker, 0)


@pytest.fixture
def site(deploy, broker, redis_url):
    # The worker has to find the states.
    return deploy("done_app", broker, redis_url)


def expect_marked(site, calls, kind, *, also=()):
    """The first three have ended as the body has marked them, and have heard of that only."""
    done, failed, also_done = calls[:3]
    for call in (done, also_done):
        assert call.get(timeout=30) == "done"
        assert heard(site, call) == sorted(["ack", "link", "task-succeeded", *also])
    with pytest.raises(KeyError):
        failed.get(timeout=30)
    ack = [] if kind == "unacknowledging" else ["ack"]
    assert heard(site, failed) == sorted([*ack, "errback", "task-failed"])


def expect_one_warning(worker, count, what):
    (line,) = [line for line in worker.problems if "had ended before" in line]
    assert f"{count} of 6 requests had ended before: {what}" in line


@pytest.mark.parametrize("kind", KINDS)
def test_the_hard_time_limit_fails_only_what_is_not_done(kind, site):
    with site.worker() as worker:
        calls = calls_of(site, site.module.limited[kind])
        # Those that a time limit does not acknowledge run again, and are a part-filled batch.
        rest = calls[3:] if kind != "unacknowledging" else []
        for call in rest:
            with pytest.raises(TimeLimitExceeded):
                call.get(timeout=30)
        worker.wait_for_log("had ended before")
        everything_sent_has_run(site, worker)
        expect_marked(site, calls, kind)
        expect_one_warning(worker, 3, "TimeLimitExceeded(1.5)")
        for call in rest:
            assert heard(site, call).count("errback") == 1
            assert heard(site, call).count("task-failed") == 1
    assert site.messages_left() == len(calls[3:]) - len(rest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hard_time_limit_fails_only_what_is_not_settled(kind, site):
    """It strikes while the second of six is told: the rest of them are not."""
    with site.worker() as worker:
        calls = calls_of(site, site.module.settled[kind])
        worker.wait_for_log("had ended before")
        everything_sent_has_run(site, worker)
        told, *rest = calls
        assert told.get(timeout=30) == "done"
        assert heard(site, told) == ["ack", "link", "on_success", "task-succeeded"]
        for call in rest:
            assert "link" not in heard(site, call)
            if kind != "unacknowledging":
                assert heard(site, call).count("errback") == 1
                assert call.state == "FAILURE"
        expect_one_warning(worker, 1, "TimeLimitExceeded(1.5)")
    assert site.messages_left() == (5 if kind == "unacknowledging" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_process_fails_only_what_is_not_settled(kind, site):
    with site.worker() as worker:
        (plain,) = calls_of(site, site.module.plain_killed[kind], 1)
        calls = calls_of(site, site.module.killed[kind])
        worker.wait_for_log("had ended before")
        again = kind == "rejecting"
        everything_sent_has_run(site, worker) if not again else site.reports.expect("run", 2)
        told, *rest = calls
        assert told.get(timeout=30) == plain.get(timeout=30) == "done"
        assert heard(site, told) == ["ack", "link", "on_success", "task-succeeded"]
        if hasattr(Request, "_success_was_stored"):  # Celery 5.7 and newer.
            assert heard(site, plain) == heard(site, told)
        for call in rest:
            assert heard(site, call).count("errback") == (0 if again else 1)
    assert runs(site)[0] == [call.id for call in calls]
