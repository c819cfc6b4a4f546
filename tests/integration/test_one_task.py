"""To whoever hooks into Celery's tracer, a batch looks like one ordinary task.

Each promise has an ordinary task of the same app beside it, as its control.
"""

import pytest

POOLS = ["prefork", "threads"]


@pytest.fixture(params=POOLS)
def pool(request):
    return request.param


def shown(site, event, name, *facts):
    """What one task has reported in this way."""
    return [
        tuple(report[fact] for fact in facts)
        for report in site.reports.of(event)
        if report["task"] == name
    ]


def run(site, pool, ordinary, batch, postruns):
    """Run an ordinary call, and a batch of two, until each has ended so many times."""
    site.module.app.tasks[ordinary].delay()
    calls = [site.module.app.tasks[batch].delay(i) for i in range(2)]
    with site.worker(pool):
        site.reports.expect("task_postrun", 2 * postruns)
    return sorted(call.id for call in calls)


@pytest.mark.redis
def test_error_reporters_find_the_exception_in_all_that_is_called(pool, redis_url, deploy):
    """`sys.exc_info()` is live in handlers and signals of a body that raises."""
    site = deploy("one_task_app", redis_url, redis_url)
    ids = run(site, pool, "ordinary.fails", "batch.fails", 1)
    assert shown(site, "on_failure", "ordinary.fails", "live") == [("ValueError",)]
    assert shown(site, "task_failure", "ordinary.fails", "live") == [("ValueError",)]
    assert shown(site, "on_failure", "batch.fails", "live") == [("ValueError",)] * 2
    assert shown(site, "task_failure", "batch.fails", "live") == [("ValueError",)]
    assert sorted(shown(site, "on_failure", "batch.fails", "id")) == [(each,) for each in ids]


@pytest.mark.redis
def test_retries_are_told_with_the_exception_and_end_as_a_failure(pool, redis_url, deploy):
    """When retries are exhausted, `task_postrun` has FAILURE and the exception, not RETRY."""
    site = deploy("one_task_app", redis_url, redis_url)
    run(site, pool, "ordinary.retries", "batch.retries", 2)
    expected = [("RETRY", "Retry"), ("FAILURE", "OSError")]
    for name, size in (("ordinary.retries", 1), ("batch.retries", 2)):
        assert shown(site, "task_postrun", name, "state", "value") == expected
        assert shown(site, "task_retry", name, "live") == [("Retry",)] * size
        assert shown(site, "on_retry", name, "live") == [("Retry",)] * size
        assert shown(site, "task_failure", name, "live") == [("OSError",)]
        assert shown(site, "left run", name, "error") == [("Retry",), ("OSError",)]
    (failed,) = shown(site, "task_failure", "batch.retries", "id")
    assert failed == shown(site, "task_postrun", "batch.retries", "id")[1]


@pytest.mark.redis
def test_a_request_that_fails_by_its_mark_is_told_with_its_exception(pool, redis_url, deploy):
    """Handlers and signals of one request find its exception, under its own id."""
    site = deploy("one_task_app", redis_url, redis_url)
    first, second = run(site, pool, "ordinary.fails", "batch.marks", 1), None
    (failed,) = shown(site, "task_failure", "batch.marks", "id", "live")
    (second,) = shown(site, "task_retry", "batch.marks", "id", "live")
    assert failed[1] == "KeyError"
    assert second[1] == "Retry"
    assert sorted([failed[0], second[0]]) == first
    assert shown(site, "on_failure", "batch.marks", "id", "live") == [failed]
    assert shown(site, "on_retry", "batch.marks", "id", "live") == [second]
    # The batch itself has not failed.
    assert shown(site, "task_postrun", "batch.marks", "state") == [("SUCCESS",)]
    assert shown(site, "left run", "batch.marks", "error") == []


@pytest.mark.redis
def test_what_wraps_the_tracer_sees_one_transaction_for_each_batch(pool, redis_url, deploy):
    """A tool that replaces `build_tracer` and wraps `run` sees the batch, once, under its id."""
    site = deploy("one_task_app", redis_url, redis_url)
    run(site, pool, "ordinary.fails", "batch.fails", 1)
    for name in ("ordinary.fails", "batch.fails"):
        (transaction,) = shown(site, "transaction", name, "id", "positional")
        assert transaction == (*shown(site, "task_prerun", name, "id")[0], 4)
        assert shown(site, "left run", name, "id", "error") == [(transaction[0], "ValueError")]
    assert [told["equal"] for told in site.reports.of("of one sender")] == [True]


@pytest.mark.redis
def test_the_context_of_a_batch_can_be_passed_on(pool, redis_url, deploy):
    """`self.request.headers` and `signature_from_request()` work as in an ordinary task."""
    site = deploy("one_task_app", redis_url, redis_url)
    for name in ("ordinary.context", "batch.context"):
        site.module.app.tasks[name].delay()
    with site.worker(pool):
        site.reports.expect("context", 2)
    (ordinary,) = shown(site, "context", "ordinary.context", "headers", "options", "root_id")
    (batch,) = shown(site, "context", "batch.context", "headers", "options", "root_id")
    assert batch == ordinary
