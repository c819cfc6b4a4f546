"""What becomes of the message of each request: by what it is told, and by what is left of it."""

import contextlib
from threading import Event, Thread

import pytest
from celery import Task
from harness import Deployment, Reports, Stream, options_for
from kombu import Queue
from kombu.utils.uuid import uuid

#: Broker, pool and shortcuts of the workers, each of which runs most tests of this module.
WORKERS = [
    pytest.param(
        (broker, pool, shortcuts),
        marks=getattr(pytest.mark, broker),
        id=f"{broker}-{pool}" + ("" if shortcuts else "-no-shortcuts"),
    )
    for broker in ("redis", "rabbitmq")
    for pool, shortcuts in (("prefork", True), ("prefork", False), ("threads", True))
]

#: Celery 5.7 and newer tell failures and time limits apart, and have what has timed out run again.
TELLS_APART = hasattr(Task, "acks_on_failure")
tells_apart = pytest.mark.skipif(not TELLS_APART, reason="this Celery has one option for both")


@contextlib.contextmanager
def dead_letters(site):
    """The ids of what comes to the dead-letter queue; ``None`` where there is no such thing."""
    if not site.config["broker_url"].startswith("amqp"):
        yield None
        return
    ids, over, name = Stream(), Event(), site.module.DEAD

    def collect(body, message):
        ids.put(message.headers["id"])
        message.ack()

    def drain():
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.2)

    with site.app.connection_for_read() as connection:
        channel = connection.default_channel
        queue = Queue(name, channel=channel, durable=True)
        queue.queue_declare()
        try:
            with connection.Consumer([queue], callbacks=[collect], accept=["json"], no_ack=False):
                thread = Thread(target=drain, daemon=True)
                thread.start()
                try:
                    yield ids
                finally:
                    over.set()
                    thread.join()
        finally:
            queue.delete()


@pytest.fixture(scope="module", params=WORKERS)
def shared(request, tmp_path_factory):
    broker, pool, shortcuts = request.param
    options = options_for(request.getfixturevalue(f"{broker}_url"), None, f"test-{uuid()}")
    options["batches_shortcuts"] = shortcuts
    reports = Reports()
    site = Deployment("acks_app", tmp_path_factory.mktemp("acks"), options, reports)
    try:
        with dead_letters(site) as dead:
            with site.worker(pool) as worker:
                yield site, worker, dead
                site.wait_until_active(worker, 0)
            assert site.messages_left() == 0
    finally:
        site.close()
        reports.close()


@pytest.fixture
def dead(shared):
    return shared[2]


def send(task, *ways):
    """Fill a batch with calls that end in these ways."""
    return [task.delay(way) for way in ways]


def wait_for_batches(worker, task, size, batches=1):
    worker.wait_for_log(rf"Batch {task.name}\[\S+\] of {size} requests", batches)


def acts(site, calls, wanted, dead):
    """What each message was told, when there are as many acts as wanted, and time for more."""
    ids = [call.id for call in calls]
    site.reports.expect("act", wanted, each=lambda report: report["id"] in ids)
    marker = site.module.marker.delay()
    site.reports.expect("act", each=lambda report: report["id"] == marker.id)
    if dead is not None:
        dead.wait(lambda items: items.count(marker.id), 1, what="markers in the dead-letter queue")
    reports = site.reports.of("act")
    return [[report["act"] for report in reports if report["id"] == i] for i in ids]


def check_dead_letters(dead, calls, told):
    """What was rejected, and nothing else, is in the dead-letter queue."""
    if dead is not None:
        expected = [call.id for call, acts in zip(calls, told, strict=True) if "reject" in acts]
        ids = {call.id for call in calls}
        # Kombu's event loop does in any order what it is asked to do at the same time.
        dead.wait(lambda items: len(ids & set(items)), len(expected), what="dead letters")
        assert sorted(i for i in dead.items if i in ids) == sorted(expected)


MIXED = {
    # What the body does: what the message is told, with acks_late or without it.
    "backend done": (["ack"], ["ack"]),
    "request done": (["ack"], ["ack"]),
    "backend failure": (["ack"], ["ack"]),
    "request failure": (["ack"], ["ack"]),
    "unmarked": (["ack"], ["ack"]),
    "retry": (["ack", "ack"], ["ack", "ack"]),  # Of the first message and of the second.
    "reject": (["reject"], ["ack"]),
    "requeue": (["requeue", "ack"], ["ack"]),
}


@pytest.mark.parametrize("kind", ["late", "early"])
def test_each_message_of_a_batch_is_told_by_its_own_outcome(kind, site, worker, dead):
    task = site.module.mixed[kind]
    expected = [late if kind == "late" else early for late, early in MIXED.values()]
    calls = send(task, *MIXED)
    wait_for_batches(worker, task, 8)
    # What was retried or has come back waits for a second batch to fill.
    again = 2 if kind == "late" else 1
    send(task, *["request done"] * (8 - again))
    wait_for_batches(worker, task, 8, 2)
    told = acts(site, calls, sum(map(len, expected)), dead)
    assert told == expected
    check_dead_letters(dead, calls, told)
    retried, rejected, requeued = calls[-3:]
    assert runs(site, retried) == [(0, False), (1, False)]
    assert runs(site, rejected) == [(0, False)]
    assert runs(site, requeued) == [(0, False), (0, True)][: 2 if kind == "late" else 1]


def runs(site, call):
    """How often it was retried, and whether it was redelivered, in each of its runs."""
    ran = site.reports.of("ran")
    return [(run["retries"], run["redelivered"]) for run in ran if run["id"] == call.id]


@pytest.mark.parametrize("kind", ["late", "early"])
@pytest.mark.parametrize("name", ["broken", "ignored"])
def test_what_fails_with_the_body_or_is_ignored_is_acknowledged(name, kind, site, worker, dead):
    task = getattr(site.module, name)[kind]
    calls = send(task, "request done", "unmarked", "unmarked")
    told = acts(site, calls, 3, dead)
    assert told == [["ack"]] * 3
    check_dead_letters(dead, calls, told)
    expected = [] if name == "ignored" else calls[1:]
    assert failed(site, worker, task, calls, len(expected)) == expected


def failed(site, worker, task, calls, wanted):
    """The calls that have failed, when their batch has ended and so many are known to have."""
    wait_for_batches(worker, task, len(calls))  # Early acknowledgements come before that.
    ids = {call.id for call in calls}
    reports = site.reports.expect("on_failure", wanted, each=lambda report: report["id"] in ids)
    found = {report["id"] for report in reports}
    return [call for call in calls if call.id in found]


@pytest.mark.parametrize("kind", ["late", "early"])
def test_a_body_that_raises_reject_drops_what_has_no_outcome(kind, site, worker, dead):
    task = site.module.rejected[kind]
    calls = send(task, "backend done", "unmarked", "unmarked")
    told = acts(site, calls, 3, dead)
    assert told == [["ack"], *[["reject"] if kind == "late" else ["ack"]] * 2]
    check_dead_letters(dead, calls, told)
    assert failed(site, worker, task, calls, 0) == []


@pytest.mark.parametrize("kind", ["late", "early"])
def test_a_body_that_raises_reject_may_have_it_redelivered(kind, site, worker, dead):
    task = site.module.requeued[kind]
    calls = send(task, "backend done", "unmarked", "unmarked")
    if kind == "late":
        wait_for_batches(worker, task, 3)
        send(task, "request done")
        wait_for_batches(worker, task, 3, 2)
        told = acts(site, calls, 5, dead)
        assert told == [["ack"], ["requeue", "ack"], ["requeue", "ack"]]
        assert [runs(site, call)[1:] for call in calls] == [[], [(0, True)], [(0, True)]]
    else:
        told = acts(site, calls, 3, dead)
        assert told == [["ack"]] * 3
    check_dead_letters(dead, calls, told)


def test_without_acks_on_failure_what_has_failed_is_dropped(site, worker, dead):
    task = site.module.strict
    ways = ("backend done", "request failure", "backend failure", "unmarked", "retry", "requeue")
    calls = send(task, *ways)
    wait_for_batches(worker, task, 6)
    send(task, *["request done"] * 4)
    told = acts(site, calls, 8, dead)
    dropped, again = ["reject"], ["requeue", "ack"]
    assert told == [["ack"], dropped, dropped, dropped, ["ack", "ack"], again]
    check_dead_letters(dead, calls, told)


@tells_apart
@pytest.mark.parametrize("name", ["strict_failure", "lenient_failure"])
def test_the_option_for_failures_only(name, site, dead):
    calls = send(getattr(site.module, name), "request done", "request failure", "unmarked")
    told = acts(site, calls, 3, dead)
    assert told == [["ack"], ["reject" if name == "strict_failure" else "ack"], ["ack"]]
    check_dead_letters(dead, calls, told)


def test_time_limits(broker, deploy):
    """The default, and both options off; then each of the newer two, where Celery has them."""
    expected = {
        "default": ["ack"],
        "neither": ["requeue", "ack"] if TELLS_APART else ["reject"],
    }
    if TELLS_APART:
        expected |= {"failure only": ["requeue", "ack"], "timeout only": ["ack"]}
    site = deploy("acks_app", broker)
    calls = {name: [site.module.timed[name].delay() for _ in range(2)] for name in expected}
    flat = [call for pair in calls.values() for call in pair]
    with dead_letters(site) as dead:
        with site.worker("prefork", concurrency=4) as worker:
            told = acts(site, flat, 2 * sum(map(len, expected.values())), dead)
            site.wait_until_active(worker, 0)
        assert told == [acts for acts in expected.values() for _ in range(2)]
        check_dead_letters(dead, flat, told)
        assert site.messages_left() == 0


def test_what_is_left_in_the_queue_when_the_worker_has_stopped(broker, deploy):
    site = deploy("acks_app", broker)
    task = site.module.mixed["late"]
    calls = send(task, *MIXED)
    with dead_letters(site) as dead:
        with site.worker() as worker:
            wait_for_batches(worker, task, 8)
            acts(site, calls, 8, dead)
            # What was retried and what was requeued wait for more to come,
            site.wait_until_active(worker, 0, waiting=2)
        # and are nobody's then: on AMQP, the worker has sent them back.
        back = 2 if broker.startswith("amqp") else 0
        assert site.messages_left() == 2
        if dead is not None:
            assert dead.items[:1] == [calls[-2].id]
    with dead_letters(site) as dead:
        with site.worker() as worker:
            # A full batch. What comes again may have cost a process, and is not in it.
            send(task, *["request done"] * 8)
            told = acts(site, calls, 8 + back + 2, dead)
            site.wait_until_active(worker, 0)
        assert [acts[-1] for acts in told[-3:]] == ["ack", "reject", "ack"]
        assert site.messages_left() == 0
