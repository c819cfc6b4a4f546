"""Requests that are run again: by their own `retry`, `self.retry`, `autoretry_for` and by hand."""

import contextlib
import re
from datetime import datetime, timedelta, timezone
from threading import Event, Thread

import pytest
from celery import chain, chord
from celery.events import EventDispatcher
from celery.exceptions import MaxRetriesExceededError
from celery.utils.time import maybe_iso8601
from harness import Deployment, Reports, Stream, options_for
from kombu.utils.uuid import uuid

#: Broker and pool of the workers, each of which runs all tests of this module but the last.
WORKERS = [
    pytest.param((broker, pool), marks=getattr(pytest.mark, broker), id=f"{broker}-{pool}")
    for broker in ("redis", "rabbitmq")
    for pool in ("prefork", "threads")
]

#: Before Celery 5.7, an event that a thread of the pool sends while others are published is lost.
KEEPS_EVENTS = hasattr(EventDispatcher, "_prepare_event")

# Celery 5.3 stores the members of a group by what redis-py 8 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Call to deprecated setex:DeprecationWarning",
)


@contextlib.contextmanager
def listening(app):
    """The events of the worker's tasks."""
    events, ready = Stream(), Event()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.put})
        receiver.on_consume_ready = lambda *args, **kwargs: ready.set()
        thread = Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield events
        finally:
            receiver.should_stop = True
            thread.join()


@pytest.fixture(scope="module", params=WORKERS)
def shared(request, tmp_path_factory):
    broker, pool = request.param
    url, backend = (request.getfixturevalue(f"{name}_url") for name in (broker, "redis"))
    options = options_for(url, backend, f"test-{uuid()}")
    reports = Reports()
    site = Deployment("retries_app", tmp_path_factory.mktemp("retries"), options, reports)
    queues = f"{site.queue},{other_queue(site)}"
    try:
        with listening(site.app) as events, site.worker(pool, "-E", "-Q", queues) as worker:
            yield site, worker, events if pool == "prefork" or KEEPS_EVENTS else None
            site.wait_until_active(worker, 0)
        assert site.messages_left() == 0
    finally:
        if broker == "rabbitmq":
            with site.app.connection_for_write() as connection:
                connection.default_channel.queue_delete(other_queue(site))
                connection.default_channel.exchange_delete(other_queue(site))
        site.close()
        reports.close()


def other_queue(site):
    return f"{site.queue}-other"


@pytest.fixture
def events(shared):
    return shared[2]


def finish(site, worker, task, size, batches=1):
    """Wait until this many batches are over, and all that was reported until then is here."""
    worker.wait_for_log(rf"Batch {task.name}\[\S+\] of {size} requests", batches)
    sync(site)


def sync(site):
    """Wait for all that was sent to the worker, or reported, until now."""
    key = uuid()
    assert site.module.marker.delay(key).get(timeout=30) is None
    site.reports.expect("marker", each=lambda report: report["key"] == key)


def told(site, event, calls):
    """What was reported of these calls, by their first argument."""
    ids = [call.id for call in calls]
    reports = [report for report in site.reports.of(event) if report["id"] in ids]
    return sorted((report["args"][0], report["exc"]) for report in reports)


def failures(site, task):
    return [report for report in site.reports.of("task_failure") if report["task"] == task.name]


def errors(worker, task):
    return [line for line in worker.problems if f" {task.name}[" in line]


def logged(worker, task):
    """The ids of the requests that have a line of their own."""
    return [re.search(r"Task \S+\[(\S+)\]", line)[1] for line in errors(worker, task)]


def send(task, args, retries=0):
    return task.apply_async(args, retries=retries)


def test_some_are_retried_by_themselves_and_the_others_together(site, worker, events):
    task = site.module.some
    own, done, failed, rest = calls = [task.delay(n) for n in ("own", "done", "failed", "rest")]
    finish(site, worker, task, 4)
    # These two wait for a batch to fill.
    assert [call.state for call in calls] == ["RETRY", "SUCCESS", "FAILURE", "RETRY"]
    assert [repr(call.info) for call in (own, rest)] == ["KeyError('own')", "OSError('rest')"]
    fillers = [task.delay("filler") for _ in range(2)]
    assert [call.get(timeout=30) for call in (own, done, rest, *fillers)] == [
        ["own", 1],
        ["done", 0],
        ["rest", 1],
        ["filler", 0],
        ["filler", 0],
    ]
    with pytest.raises(ValueError, match="failed"):
        failed.get(timeout=30)
    finish(site, worker, task, 4, batches=2)
    # A handler, a signal and an event tell of each.
    retried = [("own", "KeyError('own')"), ("rest", "OSError('rest')")]
    assert told(site, "on_retry", calls) == retried
    assert told(site, "task_retry", calls) == retried
    if events is not None:
        assert kinds_of(events, own) == kinds_of(events, rest) == ONCE_RETRIED
        assert kinds_of(events, done, 3) == ["task-received", "task-started", "task-succeeded"]
        assert kinds_of(events, failed, 3) == ["task-failed", "task-received", "task-started"]
        retries = [event for event in events.items if event["type"] == "task-retried"]
        reasons = {event["uuid"]: event["exception"] for event in retries}
        # With threads, Celery shows the Retry around it.
        assert "KeyError('own')" in reasons[own.id]
        assert "OSError('rest')" in reasons[rest.id]
    # It is no failure of the batch: the request that has failed by its own mark is told of.
    assert [report["id"] for report in failures(site, task)] == [failed.id]
    (error,) = errors(worker, task)
    assert f"Task {task.name}[{failed.id}] raised unexpected: ValueError('failed')" in error
    first, second = (batch for batch in worker.batches if batch["name"] == task.name)
    assert first["ending"].startswith("retried in ")
    assert second["ending"] == "succeeded"


ONCE_RETRIED = [
    *["task-received"] * 2,
    "task-retried",
    *["task-started"] * 2,
    "task-succeeded",
]


def kinds_of(events, call, wanted=6):
    """The events of a call, in alphabetical order."""

    def count(items):
        return sum(event.get("uuid") == call.id for event in items)

    items = events.wait(count, wanted, what=f"events of {call.id}")
    return sorted(event["type"] for event in items if event.get("uuid") == call.id)


def test_a_retry_that_is_not_thrown_lets_the_body_go_on(site):
    call = site.module.unthrown.delay()
    assert call.get(timeout=30) == 1
    sync(site)
    (report,) = (report for report in site.reports.of("went on") if report["id"] == call.id)
    assert report["retries"] == 0


def test_each_request_has_its_own_count_of_retries_and_its_own_limit(site, worker):
    task = site.module.limited  # max_retries is 1.
    over, nameless, under, extended = calls = [
        send(task, ("over", None), 1),
        send(task, ("", None), 1),
        send(task, ("under", None), 0),
        send(task, ("extended", 3), 1),
    ]
    finish(site, worker, task, 4)
    assert [call.state for call in calls] == ["FAILURE", "FAILURE", "RETRY", "RETRY"]
    with pytest.raises(KeyError, match="over"):
        over.get(timeout=30)
    with pytest.raises(MaxRetriesExceededError):
        nameless.get(timeout=30)
    # A line in the log and the signal for each request whose retries are exhausted.
    assert logged(worker, task) == [over.id, nameless.id]
    failed = sorted(report["id"] for report in failures(site, task))
    assert failed == sorted([over.id, nameless.id])
    fill(task, 2)
    finish(site, worker, task, 4, batches=2)
    assert (under.state, extended.state) == ("FAILURE", "RETRY")
    fill(task, 3)
    finish(site, worker, task, 4, batches=3)
    for call, name in ((under, "under"), (extended, "extended")):
        with pytest.raises(KeyError, match=name):
            call.get(timeout=30)
    assert [first for first, exc in told(site, "on_retry", calls)] == [
        "extended",
        "extended",
        "under",
    ]
    assert len(told(site, "on_failure", [over, nameless, under, extended])) == 4
    failed = sorted(report["id"] for report in failures(site, task))
    assert failed == sorted(call.id for call in calls)
    assert sorted(logged(worker, task)) == failed


def fill(task, count):
    for _ in range(count):
        task.delay("filler")


@pytest.mark.parametrize(("word", "error"), [("all", KeyError), ("", MaxRetriesExceededError)])
def test_the_batch_is_retried_but_for_those_over_the_limit(word, error, site, worker):
    task = site.module.all_limited  # max_retries is 1.
    before = len([batch for batch in worker.batches if batch["name"] == task.name])
    over, under = send(task, (word,), 1), send(task, (word,), 0)
    finish(site, worker, task, 2, batches=before + 1)
    assert (over.state, under.state) == ("FAILURE", "RETRY")
    fill(task, 1)
    finish(site, worker, task, 2, batches=before + 2)
    for call in (over, under):
        with pytest.raises(error):
            call.get(timeout=30)
    exc = "KeyError('all')" if word else None
    assert told(site, "task_retry", [over, under]) == [(word, exc)]


def test_the_limit_of_one_retry_does_not_stay_with_the_task(site):
    task = site.module.lenient_once  # max_retries is 1.
    assert task.delay("own").get(timeout=30) == "own"
    over = task.apply_async(("connection",), retries=1)
    with pytest.raises(ConnectionError, match="down"):
        over.get(timeout=30)
    sync(site)
    assert told(site, "task_retry", [over]) == []


def test_autoretry_counts_for_each_request(site, worker):
    task = site.module.automatic  # max_retries is 1 by retry_kwargs.
    over = task.apply_async(("connection",), retries=1)
    under = task.apply_async(("connection",), {"until": 1})
    finish(site, worker, task, 2)
    assert (over.state, under.state) == ("FAILURE", "RETRY")
    with pytest.raises(ConnectionError, match="down"):
        over.get(timeout=30)
    fill(task, 1)
    assert under.get(timeout=30) == ["connection", 1]
    assert told(site, "task_retry", [over, under]) == [("connection", "ConnectionError('down')")]


@pytest.mark.parametrize(
    ("word", "error"), [("reset", ConnectionResetError), ("value", ValueError)]
)
def test_autoretry_is_for_the_exceptions_that_it_names(word, error, site, worker):
    task = site.module.automatic
    calls = [task.delay(word) for _ in range(2)]
    for call in calls:
        with pytest.raises(error, match="down"):
            call.get(timeout=30)
    sync(site)
    assert told(site, "task_retry", calls) == []


def test_a_retried_request_is_the_same_call(site, worker):
    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    call = site.module.keeping.apply_async(
        (7,),
        {"times": 2},
        queue=other_queue(site),
        priority=5,
        headers={"tenant": "acme"},
        expires=expires,
        time_limit=50,
        soft_time_limit=40,
        link=site.module.add.s(1),
        link_error=site.module.add.si(1, 1),
        shadow="shown",
        parent_id=uuid(),  # Without one, Celery takes the call for its own parent from then on.
    )
    assert call.get(timeout=30) == 7
    first, *others = runs = runs_of(site, call, 3)
    assert [run["retries"] for run in runs] == [0, 1, 2]
    assert {run["routing_key"] for run in runs} == {other_queue(site)}
    assert {run["priority"] for run in runs} == {5}
    facts = first["facts"]
    assert facts["headers"]["tenant"] == "acme"
    assert maybe_iso8601(facts["expires"]) == expires
    assert (facts["timelimit"], facts["shadow"]) == ([50, 40], "shown")
    assert facts["reply_to"]
    assert len(facts["callbacks"]) == len(facts["errbacks"]) == 1
    for run in others:
        assert run["facts"] == facts
    # Its link goes on, once.
    assert received(site, site.module.add, call) == 1


def runs_of(site, call, wanted):
    def each(report):
        return report["facts"]["id"] == call.id

    return [run for run in site.reports.expect("ran", wanted, each=each) if each(run)]


def received(site, task, root):
    """How many calls of the task, which go back to this one, the worker has got."""
    sync(site)
    reports = site.reports.of("received")
    return sum((r["task"], r["root_id"]) == (task.name, root.id) for r in reports)


def test_a_chord_is_complete_once_its_retried_members_are_done(site):
    keeping, total = site.module.keeping, site.module.total
    members = [keeping.s(number, times=times) for number, times in ((1, 2), (2, 1), (4, 0))]
    result = chord(members)(total.s())
    assert result.get(timeout=30) == 7
    for index, member in enumerate(result.parent.results):
        for run in runs_of(site, member, 3 - index):
            assert run["facts"]["group"] == result.parent.id
            assert run["facts"]["group_index"] == index
            assert run["facts"]["chord"]["task"] == total.name
    sync(site)
    assert sum(report["id"] == result.id for report in site.reports.of("received")) == 1


def test_a_chain_goes_on_once_after_a_retry(site):
    keeping, add = site.module.keeping, site.module.add
    result = chain(keeping.s(1, times=2), keeping.s(times=1), add.s(10))()
    assert result.get(timeout=30) == 11
    second, first = result.parent, result.parent.parent
    assert [len(run["facts"]["chain"]) for run in runs_of(site, first, 3)] == [2, 2, 2]
    assert [len(run["facts"]["chain"]) for run in runs_of(site, second, 2)] == [1, 1]
    assert received(site, add, first) == 1
    assert received(site, keeping, first) == 5


def test_a_retry_may_go_to_another_queue_with_another_priority(site):
    options = {"queue": other_queue(site), "priority": 9}
    call = site.module.keeping.apply_async((3,), {"options": options}, priority=2)
    assert call.get(timeout=30) == 3
    runs = runs_of(site, call, 2)
    assert [run["routing_key"] for run in runs] == [site.queue, other_queue(site)]
    assert [run["priority"] for run in runs] == [2, 9]


def test_a_retry_may_have_other_arguments(site):
    kwargs = {"options": {"args": [8]}}
    call = site.module.keeping.apply_async((7,), kwargs)
    assert call.get(timeout=30) == 8
    assert runs_of(site, call, 2)[1]["facts"]["kwargs"] == kwargs
    call = site.module.keeping.apply_async((7,), {"options": {"kwargs": {"word": "new"}}})
    assert call.get(timeout=30) == 7
    assert runs_of(site, call, 2)[1]["facts"]["kwargs"] == {"word": "new"}


def test_a_call_may_still_be_sent_again_by_hand(site):
    call = site.module.sent_again.delay(5)
    assert call.get(timeout=30) == 5
    runs = [run for run in site.reports.of("ran") if run.get("id") == call.id]
    assert [run["retries"] for run in runs] == [0, 1, 2]


@pytest.mark.redis
def test_autoretry_backs_off_by_the_count_of_each_request(redis_url, deploy):
    site = deploy("retries_app", redis_url, redis_url)
    calls = [send(site.module.backing_off, ("connection",), retries) for retries in range(3)]
    start = datetime.now(timezone.utc)
    with site.worker("threads") as worker:
        waits = site.reports.expect("task_retry", 3)
        site.reports.expect("received", 6)
        inspect = site.app.control.inspect(destination=[worker.node], timeout=10)
        waiting = {e["request"]["id"]: e["eta"] for e in inspect.scheduled()[worker.node]}
        end = datetime.now(timezone.utc)
    # The factor is 1000 seconds and the maximum 3000.
    seconds = [1000, 2000, 3000]
    assert sorted((wait["retries"], wait["when"]) for wait in waits) == list(enumerate(seconds))
    for call, delay in zip(calls, seconds, strict=True):
        eta = maybe_iso8601(waiting[call.id]).astimezone(timezone.utc)
        assert start <= eta - timedelta(seconds=delay) <= end
        assert call.state == "RETRY"
    assert site.messages_left() == 3
