"""How the requests of a batch end, each in its own way, and what their callers get."""

import re

import pytest
from celery.exceptions import TimeoutError
from harness import one_worker, options_for
from kombu.utils.uuid import uuid

#: Broker, pool and shortcuts of the workers, each of which runs all tests here but the last.
WORKERS = [
    pytest.param(
        (broker, pool, shortcuts),
        marks=getattr(pytest.mark, broker),
        id=f"{broker}-{pool}" + ("" if shortcuts else "-no-shortcuts"),
    )
    for broker in ("redis", "rabbitmq")
    for pool, shortcuts in (("prefork", True), ("prefork", False), ("threads", True))
]


@pytest.fixture(scope="module", params=WORKERS)
def shared(request, tmp_path_factory):
    broker, pool, shortcuts = request.param
    url = request.getfixturevalue(f"{broker}_url")
    options = options_for(url, url if broker == "redis" else "rpc://", f"test-{uuid()}")
    options["batches_shortcuts"] = shortcuts
    with one_worker("outcomes_app", tmp_path_factory.mktemp("outcomes"), options, pool) as shared:
        yield shared


def send(task, *ways):
    """Fill a batch with calls that end in these ways."""
    return [task.delay(*([way] if isinstance(way, str) else way)) for way in ways]


def ending(call):
    """What the caller gets: the result, or name and text of the exception."""
    try:
        return call.get(timeout=30)
    except TimeoutError:
        raise
    except Exception as exc:
        return type(exc).__name__, str(exc)


def has_nothing(call):
    """Whether the caller is still waiting. To be asked after results that came later."""
    with pytest.raises(TimeoutError):
        call.get(timeout=0.1)
    return True


def finish(site, worker, task, size, batches=1):
    """Wait until this many batches are over, and all that was reported until then is here."""
    worker.wait_for_log(rf"Batch {task.name}\[\S+\] of {size} requests", batches)
    key = uuid()
    assert site.module.marker.delay(key).get(timeout=30) is None
    site.reports.expect("marker", each=lambda report: report["key"] == key)


def told(site, event, task):
    return [report for report in site.reports.of(event) if report["task"] == task.name]


def problems(worker, task):
    """The errors in the log that have to do with the task, of which one is the whole batch's."""
    return [line for line in worker.problems if re.search(rf"\b{task.name}\b", line)]


KEY_ERROR = {by: ("KeyError", repr(f"by the {by}")) for by in ("backend", "request")}


@pytest.mark.parametrize("name", ["returning", "raising"])
def test_each_caller_gets_the_outcome_of_its_own_request(name, site, worker):
    task = getattr(site.module, name)
    ways = ("backend done", "request done", "backend failure", "request failure")
    calls = send(task, *ways, "retry", "reject", ())
    *settled, retried, rejected, unmarked = calls
    finish(site, worker, task, 7)
    # The retried request waits for a second batch to fill.
    fillers = send(task, *["request done"] * 6)
    assert list(map(ending, settled)) == [
        "by the backend",
        "by the request",
        KEY_ERROR["backend"],
        KEY_ERROR["request"],
    ]
    assert list(map(ending, [retried, *fillers])) == ["by the request"] * 7
    if name == "raising":
        assert ending(unmarked) == ("RuntimeError", "by raising")
    else:
        assert has_nothing(unmarked)
    # Newer Celery tells the caller of a rejected task that it has failed.
    alone = site.module.rejected_alone.delay()
    site.reports.expect("reject", 2, each=lambda report: report["id"] in (alone.id, rejected.id))
    assert rejection(rejected) == rejection(alone)
    assert rejection(alone) in ("Reject", "TimeoutError")
    finish(site, worker, task, 7, batches=2)
    # Handlers tell of each request how it ended, signals what the body did, and of each request
    # that has failed by an exception of its own.
    done = {report["id"]: report["retval"] for report in told(site, "on_success", task)}
    failed = {report["id"]: report["exc"] for report in told(site, "on_failure", task)}
    by_id = {call.id: way for call, way in zip(calls, (*ways, "retry", "reject", ""), strict=True)}
    first_batch_done = {by_id[key]: value for key, value in done.items() if key in by_id}
    assert first_batch_done == {
        "backend done": "by the backend",
        "request done": "by the request",
        "retry": "by the request",
        **({"": "by return"} if name == "returning" else {}),
    }
    assert {by_id[key]: value for key, value in failed.items() if key in by_id} == {
        "backend failure": "KeyError('by the backend')",
        "request failure": "KeyError('by the request')",
        **({"": "RuntimeError('by raising')"} if name == "raising" else {}),
    }
    # Newer Celery sends this for a rejected task, too.
    failures = [r for r in told(site, "task_failure", task) if r["id"] != rejected.id]
    own = sorted(call.id for call, way in zip(calls, ways, strict=False) if "failure" in way)
    assert sorted(r["id"] for r in failures if r["id"] in by_id) == own
    assert len(failures) == len(own) + (0 if name == "returning" else 2)
    assert len(told(site, "task_success", task)) == (2 if name == "returning" else 0)


def rejection(call):
    """What the caller of a rejected task hears, if anything."""
    try:
        return call.get(timeout=1)
    except Exception as exc:
        return type(exc).__name__


TWICE = {
    ("backend done", "request failure"): "by the backend",
    ("request done", "backend failure"): "by the request",
    ("backend failure", "request done"): KEY_ERROR["backend"],
    ("request failure", "backend done"): KEY_ERROR["request"],
    ("backend done", "backend failure"): "by the backend",
    ("request failure", "request done"): KEY_ERROR["request"],
    ("request done", "retry"): "by the request",
    ("backend failure", "reject"): KEY_ERROR["backend"],
}


@pytest.mark.parametrize("name", ["twice_returning", "twice_raising"])
def test_the_first_outcome_of_a_request_wins(name, site, worker):
    task = getattr(site.module, name)
    calls = send(task, *TWICE)
    assert list(map(ending, calls)) == list(TWICE.values())
    finish(site, worker, task, 8)
    # Nor has anything been changed, or told of twice, afterwards.
    assert list(map(ending, calls)) == list(TWICE.values())
    assert len(told(site, "on_success", task)) == 4
    assert len(told(site, "on_failure", task)) == 4
    ids = [call.id for call in calls]
    warnings = [line for line in worker.log.items if "has no effect" in line]
    assert sum(any(i in line for i in ids) for line in warnings) == 3  # One by the backend each.


def test_helper_threads_of_the_body_may_settle_requests(site):
    ways = ("backend done", "request done", "backend failure", "request failure")
    endings = ["by the backend", "by the request", KEY_ERROR["backend"], KEY_ERROR["request"]]
    assert list(map(ending, send(site.module.threaded, *ways * 2))) == endings * 2


def test_a_result_that_cannot_be_serialised_fails_its_own_request_only(site, worker):
    task = site.module.objects
    *broken, neighbour = send(task, "backend object", "request object", ())
    for call in broken:
        kind, text = ending(call)
        assert kind in ("EncodeError", "TypeError")
        assert "JSON serializable" in text
    finish(site, worker, task, 3)
    assert has_nothing(neighbour)
    for name in ("on_failure", "task_failure"):
        ids = sorted(report["id"] for report in told(site, name, task))
        assert ids == sorted(call.id for call in broken)
    assert len(problems(worker, task)) == 2


@pytest.mark.parametrize(
    ("name", "ways", "where"),
    [
        ("locked", ["request locked", "request done"], "by the request"),
        ("locked_body", [(), "request done"], "by locked_body"),
    ],
)
def test_an_exception_that_cannot_be_pickled_is_told_as_celery_does_it(name, ways, where, site):
    locked, done = send(getattr(site.module, name), *ways)
    assert ending(done) == "by the request"
    kind, text = ending(locked)
    assert (kind, text) == ending(site.module.locked_alone.delay(where))
    assert "Locked" in kind + text
    assert where in text


def test_expected_exceptions_are_not_errors_in_the_log(site, worker):
    task = site.module.throwing
    calls = send(task, (), (), "request done")
    expected = ("KeyError", repr("by throwing"))
    assert list(map(ending, calls)) == [expected, expected, "by the request"]
    worker.wait_for_log(rf": INFO/.*Batch {task.name}\[\S+\] of 3 requests.* raised expected")
    finish(site, worker, task, 3)
    assert problems(worker, task) == []
    assert len(told(site, "task_failure", task)) == 1


def test_a_failed_batch_is_one_error_in_the_log_and_one_signal(site, worker):
    task = site.module.breaking
    calls = send(task, (), (), ())
    assert list(map(ending, calls)) == [("RuntimeError", "by breaking")] * 3
    finish(site, worker, task, 3)
    (problem,) = problems(worker, task)
    assert "raised unexpected" in problem
    (failure,) = told(site, "task_failure", task)
    assert f"Batch {task.name}[{failure['id']}]" in problem
    assert failure["exc"] == "RuntimeError('by breaking')"
    assert failure["einfo"] == "ExceptionInfo"
    assert sorted(report["id"] for report in told(site, "on_failure", task)) == (
        sorted(call.id for call in calls)
    )


@pytest.mark.redis
def test_results_that_nobody_wants_are_not_stored(redis_url, deploy):
    site = deploy("outcomes_app", redis_url, redis_url, task_ignore_result=True)
    ways = (["backend done"], ["request done"], ["request failure"], [])
    nothing = ["PENDING"] * 4
    everything = ["SUCCESS", "SUCCESS", "FAILURE", "FAILURE"]
    errors = ["PENDING", "PENDING", "FAILURE", "FAILURE"]
    module = site.module
    # The task, what its calls say themselves, and what is stored.
    runs = [
        (module.ignoring, {}, nothing),
        (module.ignoring, {"ignore_result": False}, everything),
        (module.storing, {}, everything),
        (module.storing, {"ignore_result": True}, nothing),
        (module.by_setting, {}, nothing),
        (module.by_setting, {"ignore_result": False}, everything),
        (module.keeping_errors, {}, errors),
    ]
    # On one queue and with one process, the batches run in this order.
    calls = [[task.apply_async(way, **options) for way in ways] for task, options, _ in runs]
    with site.worker("threads", concurrency=1) as worker:
        worker.wait_for_batches(4 * len(runs))
    stored = [[site.app.AsyncResult(call.id).state for call in batch] for batch in calls]
    assert stored == [states for _, _, states in runs]
