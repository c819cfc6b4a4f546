"""What monitors see of each request: events, `celery inspect`, and states in the result backend.

Wherever it can be, the measure is an ordinary task in the same worker that ends in the same way.
"""

import contextlib
import dataclasses
import os
import threading
import time
from types import SimpleNamespace

import pytest
from celery import Celery, states
from celery.events import EventDispatcher
from harness import DEADLINE, Deployment, Reports, Stream, options_for
from kombu.utils.uuid import uuid

from celery_batches import Batches

# Celery 5.3 stores results by what redis-py 8 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


# Of events that several threads send at once, old releases of Celery lose some.
THREADS = "threads" if hasattr(EventDispatcher, "_prepare_event") else "prefork"


class Monitor(Stream):
    """The events that a monitor receives, on a thread of its own."""

    def of(self, task_id):
        return [event for event in self.items if event.get("uuid") == task_id]

    def expect(self, type_, *task_ids):
        """Wait until this event has come for each of these tasks."""

        def count(events):
            return len({e["uuid"] for e in events if e["type"] == type_} & set(task_ids))

        self.wait(count, len(task_ids), what=f"{type_} events of {task_ids}")

    def expect_offline(self, node):
        """Wait for what a worker sends last."""

        def count(events):
            return sum(e["type"] == "worker-offline" and e["hostname"] == node for e in events)

        self.wait(count, 1, what="worker-offline events")


@contextlib.contextmanager
def monitoring(site):
    """Capture events as Flower does. RabbitMQ has those of all apps: ids say whose they are."""
    monitor, ready, me = Monitor(), threading.Event(), uuid()

    def on_event(event):
        if event.get("monitor") == me:
            ready.set()
            receiver.should_stop = event["type"] == "test-goodbye"
        monitor.put(event)

    with site.app.connection_for_read() as connection, site.app.connection_for_write() as own:
        receiver = site.app.events.Receiver(connection, handlers={"*": on_event})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        with site.app.events.Dispatcher(own) as dispatcher:
            for _ in range(int(DEADLINE * 10)):
                dispatcher.send("test-hello", monitor=me)
                if ready.wait(0.1):
                    break
            assert ready.is_set()
            try:
                yield monitor
            finally:
                dispatcher.send("test-goodbye", monitor=me)
                thread.join(DEADLINE)


# How every request ends, and the event that comes last.
ENDINGS = {
    "done": "task-succeeded",
    "marked": "task-succeeded",
    "unmarked": "task-succeeded",
    "failed": "task-failed",
    "marked failed": "task-failed",
    "retried": "task-succeeded",
    "rejected": "task-rejected",
    "requeued": "task-succeeded",
}
RAISED = ("failed", "retried", "rejected", "requeued", "ignored")


@dataclasses.dataclass
class Run:
    """One worker on which all of it happened."""

    site: Deployment
    node: str
    events: Monitor
    #: Ending -> the call of a batch task, and that of the ordinary task.
    pairs: dict
    #: The same, for a body that raises: two calls of the batch task, and the ordinary one.
    raised: dict

    @property
    def twins(self):
        """How each call of a batch task ended, the call, and the ordinary one that ended so."""
        for how, (call, ordinary) in self.pairs.items():
            yield how, call, ordinary
        for how, (*calls, ordinary) in self.raised.items():
            yield from ((how, call, ordinary) for call in calls)

    @property
    def ids(self):
        return {call.id for pair in [*self.pairs.values(), *self.raised.values()] for call in pair}

    def story(self, call):
        """The events of one call, in an order of their own: a retry may overtake its event."""
        same = ("result", "requeue", "retries", "args", "kwargs", "eta", "expired")
        return sorted(
            (event["type"], repr({k: event[k] for k in same if k in event}), sorted(event))
            for event in self.events.of(call.id)
        )

    def exceptions(self, type_, how):
        """What events of that type say of the calls that ended so."""
        calls = [self.pairs[how][0], *self.raised.get(how, [])[:-1]]
        events = [event for call in calls for event in self.events.of(call.id)]
        return {event["exception"] for event in events if event["type"] == type_}


def on(broker, pool):
    return pytest.param((broker, pool), marks=getattr(pytest.mark, broker), id=f"{broker}-{pool}")


@pytest.fixture(
    scope="module",
    params=[on(b, pool) for b in ("redis", "rabbitmq") for pool in sorted({"prefork", THREADS})],
)
def run(request, redis_url, tmp_path_factory):
    """Calls that end in every way on a worker that sends events."""
    broker, pool = request.param
    options = options_for(request.getfixturevalue(f"{broker}_url"), redis_url, f"test-{uuid()}")
    options |= {"task_send_sent_event": True, "result_extended": True}
    with contextlib.ExitStack() as stack:
        reports = stack.enter_context(contextlib.closing(Reports()))
        directory = tmp_path_factory.mktemp("monitoring")
        site = Deployment("monitoring_app", directory, options, reports)
        stack.callback(site.close)
        events = stack.enter_context(monitoring(site))
        # Before there is a worker: so that they find one another in a batch.
        together, at_once, alone = site.module.together, site.module.at_once, site.module.alone
        pairs = {how: (together.delay(how), alone.delay(how)) for how in ENDINGS}
        raised = {}
        with site.worker(pool, "-E") as worker:
            for how, last in ENDINGS.items():
                events.expect(last, *(call.id for call in pairs[how]))
            for how in RAISED:
                raised[how] = (at_once.delay(how), at_once.delay(how), alone.delay(how))
                ids = [call.id for call in raised[how]]
                events.expect(ENDINGS.get(how, "task-started"), *ids)
            pairs["revoked"] = revoked_calls(site, worker.node)
            events.expect("task-revoked", *(call.id for call in pairs["revoked"]))
        events.expect_offline(worker.node)
        yield Run(site, worker.node, events, pairs, raised)


def revoked_calls(site, node):
    """Two calls that the worker knows to be revoked before they come."""
    ids = [uuid(), uuid()]
    site.app.control.revoke(ids, destination=[node], reply=True, timeout=DEADLINE)
    return (
        site.module.together.apply_async(("revoked",), task_id=ids[0]),
        site.module.alone.apply_async(("revoked",), task_id=ids[1]),
    )


def test_each_request_has_the_events_of_an_ordinary_task(run):
    assert max(report["size"] for report in run.site.reports.of("together")) > 1
    for _, call, ordinary in run.twins:
        assert run.story(call) == run.story(ordinary)


def test_events_tell_the_exception_of_each_request(run):
    # Not always so for an ordinary task where the pool has no processes: there Celery may show
    # what it has wrapped the exception in.
    assert run.exceptions("task-failed", "failed") == {"KeyError('no luck')"}
    assert run.exceptions("task-failed", "marked failed") == {"KeyError('no luck')"}
    assert run.exceptions("task-retried", "retried") == {"KeyError('no luck yet')"}
    # In Celery before 5.7, what is rejected has not failed.
    rejected = {"reject requeue=False: rejected by the body"}
    assert run.exceptions("task-failed", "rejected") <= rejected


def test_each_event_comes_once_for_each_request(run):
    expected = {
        "done": ["received", "sent", "started", "succeeded"],
        "marked": ["received", "sent", "started", "succeeded"],
        "unmarked": ["received", "sent", "started", "succeeded"],
        "failed": ["failed", "received", "sent", "started"],
        "marked failed": ["failed", "received", "sent", "started"],
        "revoked": ["revoked", "sent"],
    }
    for how, kinds in expected.items():
        call, _ = run.pairs[how]
        assert sorted(e["type"] for e in run.events.of(call.id)) == [f"task-{k}" for k in kinds]
    twice = ["received", "sent", "started"]
    retried = sorted(e["type"] for e in run.events.of(run.pairs["retried"][0].id))
    assert retried == sorted(f"task-{kind}" for kind in [*twice, "retried", *twice, "succeeded"])
    for how in ("rejected", "requeued"):
        rejected = [e for e in run.events.of(run.pairs[how][0].id) if e["type"] == "task-rejected"]
        assert [event["requeue"] for event in rejected] == [how == "requeued"]


def test_no_event_goes_by_the_id_of_a_batch(run):
    of_worker = [event for event in run.events.items if event["hostname"] == run.node]
    named = {event["uuid"] for event in of_worker if "uuid" in event}
    assert named <= run.ids


def test_events_tell_the_result_and_the_runtime_of_each_request(run):
    ended = {}
    for how in ("done", "marked", "unmarked"):
        call, _ = run.pairs[how]
        (ended[how],) = (e for e in run.events.of(call.id) if e["type"] == "task-succeeded")
        assert ended[how]["runtime"] > 0
    results = {how: event["result"] for how, event in ended.items()}
    assert results == {"done": "'done'", "marked": "'marked'", "unmarked": "'the batch'"}
    assert len({event["runtime"] for event in ended.values()}) == 1


def test_event_state_shows_each_request_as_it_ended(run):
    state, when_retried = run.site.app.events.State(), []
    for event in run.events.items:
        if event.get("uuid") in run.ids:
            state.event(event)
        if event["type"] == "task-retried" and event["uuid"] in run.ids:
            when_retried.append(state.tasks[event["uuid"]].state)
    assert set(state.tasks) == run.ids
    assert set(when_retried) == {states.RETRY}
    for how, call, ordinary in run.twins:
        if how != "retried":  # It may overtake that event.
            assert state.tasks[call.id].state == state.tasks[ordinary.id].state
    shown = {how: state.tasks[call.id] for how, (call, _) in run.pairs.items()}
    assert {task.name for task in shown.values()} == {run.site.module.together.name}
    assert {task.worker.hostname for task in shown.values()} == {run.node}
    del shown["retried"], shown["rejected"]  # In Celery 5.7 and newer that is a failure too.
    assert {how: task.state for how, task in shown.items()} == {
        "done": states.SUCCESS,
        "marked": states.SUCCESS,
        "unmarked": states.SUCCESS,
        "failed": states.FAILURE,
        "marked failed": states.FAILURE,
        "requeued": states.SUCCESS,
        "revoked": states.REVOKED,
    }
    assert shown["done"].args == "('done',)"
    assert shown["failed"].exception == "KeyError('no luck')"


def test_extended_results_are_those_of_an_ordinary_task(run):
    same = ("status", "result", "args", "kwargs", "worker", "retries", "queue", "children")
    shown = set()
    for how, call, ordinary in run.twins:
        # Of what is unmarked there is nothing in the result backend, and a retry may be so quick
        # that its result is there before Celery stores that there is to be one.
        if how in ("unmarked", "retried"):
            continue
        stored, expected = (fresh(run, one) for one in (call, ordinary))
        assert {k: repr(stored.get(k)) for k in same} == {k: repr(expected.get(k)) for k in same}
        assert set(stored) == set(expected)
        shown.add(stored["status"])
    assert shown >= {states.SUCCESS, states.FAILURE}
    for how, retries in {"done": 0, "marked": 0, "retried": 1}.items():
        stored = fresh(run, run.pairs[how][0])
        assert (stored["status"], stored["retries"]) == (states.SUCCESS, retries)
        assert stored["name"] == run.site.module.together.name
        assert (list(stored["args"]), stored["kwargs"]) == ([how], {})
        assert (stored["worker"], stored["queue"]) == (run.node, run.site.queue)


def fresh(run, call):
    return run.site.app.AsyncResult(call.id)._get_task_meta()


def inspecting(site, node):
    """The commands of `celery inspect`; each returns the answer of this worker."""
    inspect = site.app.control.inspect(destination=[node], timeout=DEADLINE)
    return lambda command, *args: getattr(inspect, command)(*args)[node]


def expect_idle(ask):
    """Wait until the worker knows of all results that the callers have by now."""
    deadline = time.monotonic() + DEADLINE
    while ask("active"):
        assert time.monotonic() < deadline


#: Each broker and each pool, where not every pair of them matters.
EACH = pytest.mark.parametrize(
    ("broker", "pool"),
    [
        pytest.param("redis", "prefork", marks=pytest.mark.redis),
        pytest.param("rabbitmq", THREADS, marks=pytest.mark.rabbitmq),
    ],
    indirect=["broker"],
)


@EACH
def test_no_event_is_sent_that_is_not_wanted(broker, pool, redis_url, deploy):
    site = deploy("monitoring_app", broker, redis_url)
    swift, quiet = site.module.swift, site.module.quiet
    with monitoring(site) as events, site.worker(pool) as worker:
        early = [swift.delay(i) for i in range(3)]
        assert [call.get(timeout=DEADLINE) for call in early] == [0, 2, 4]
        expect_idle(inspecting(site, worker.node))
        # As Flower and `celery control` do.
        site.app.control.enable_events(destination=[worker.node], reply=True, timeout=DEADLINE)
        silent = [quiet.delay(i) for i in range(3)]  # This task has send_events=False.
        assert [call.get(timeout=DEADLINE) for call in silent] == [0, 2, 4]
        shown = [swift.delay(i) for i in range(3)]
        events.expect("task-succeeded", *(call.id for call in shown))
    events.expect_offline(worker.node)
    assert [events.of(call.id) for call in [*early, *silent]] == [[]] * 6
    named = {event.get("uuid") for event in events.items if event["hostname"] == worker.node}
    assert named - {None} == {call.id for call in shown}


def ids_of(answer):
    return {info["id"] for info in answer}


@EACH
def test_inspect_shows_each_request_where_it_is(broker, pool, deploy):
    site = deploy("monitoring_app", broker)
    os.mkfifo(site.directory / "go")
    gated, name = site.module.gated, site.module.gated.name
    with monitoring(site) as events, site.worker(pool, "-E", concurrency=1) as worker:
        ask = inspecting(site, worker.node)
        running = {gated.delay(i, word=f"n{i}").id: i for i in range(3)}
        events.expect("task-started", *running)
        (started,) = site.reports.expect("started")
        # A whole batch that waits for the pool, a part of one, and calls that wait for their time.
        waiting = [gated.delay(i).id for i in range(3)]
        buffered = [gated.delay(i).id for i in range(2)]
        others = (site.module.swift, site.module.alone)
        later = [task.apply_async(("done",), countdown=600).id for task in others]
        events.expect("task-received", *waiting, *buffered, *later)

        active = ask("active")
        assert {info["id"]: info["args"][0] for info in active} == running
        assert {info["id"]: info["kwargs"]["word"] for info in active} == {
            task_id: f"n{i}" for task_id, i in running.items()
        }
        assert {(info["name"], info["worker_pid"], info["hostname"]) for info in active} == {
            (name, started["pid"], worker.node)
        }
        assert all(info["time_start"] and info["acknowledged"] for info in active)
        reserved = ask("reserved")
        assert ids_of(reserved) == {*waiting, *buffered}
        assert {(info["name"], info["worker_pid"]) for info in reserved} == {(name, None)}
        scheduled = {entry["request"]["id"]: entry for entry in ask("scheduled")}
        assert set(scheduled) == set(later)
        assert all(entry["eta"] and entry["priority"] == 6 for entry in scheduled.values())
        found = ask("query_task", [*running, *waiting, *buffered, *later, "nobody"])
        batched, ordinary = (found.pop(task_id, [None])[0] for task_id in later)
        assert batched == ordinary  # Celery before 5.7 does not know of what is scheduled.
        assert {task_id: info[0] for task_id, info in found.items()} == {
            **dict.fromkeys(running, "active"),
            **dict.fromkeys([*waiting, *buffered], "reserved"),
        }
        assert ask("stats")["total"] == {name: 3}

        site.app.control.revoke(buffered, destination=[worker.node], reply=True, timeout=DEADLINE)
        assert set(buffered) <= set(ask("revoked"))
        (site.directory / "go").write_text("now")
        events.expect("task-succeeded", *running)
        site.reports.expect("started", 2)
        events.expect("task-started", *waiting)
        assert ids_of(ask("active")) == set(waiting)
        assert ids_of(ask("reserved")) == set(buffered)
        (site.directory / "go").write_text("now")
        # It fills the batch that the revoked two are in, and runs alone.
        last = gated.delay(9).id
        site.reports.expect("started", 3)
        events.expect("task-revoked", *buffered)
        (site.directory / "go").write_text("now")
        events.expect("task-succeeded", *waiting, last)
        assert ask("active") == []
        assert ask("reserved") == []
        assert ask("query_task", [*running, *waiting, *buffered, last]) == {}
        assert ask("stats")["total"] == {name: 7}
    assert [report["ids"] for report in site.reports.of("started")][1:] == [waiting, [last]]
    for task_id in buffered:
        (revoked,) = [e for e in events.of(task_id) if e["type"] == "task-revoked"]
        assert (revoked["terminated"], revoked["expired"]) == (False, False)


def stages(site):
    os.mkfifo(site.directory / "go")
    return [site.module.staged.delay() for _ in range(4)]


@EACH
def test_states_and_events_say_how_far_each_request_is(broker, pool, redis_url, deploy):
    site = deploy("monitoring_app", broker, redis_url, task_track_started=True)
    with monitoring(site) as events, site.worker(pool, "-E") as worker:
        marked, done, single, other = calls = stages(site)
        (staged,) = site.reports.expect("staged")
        # What has its outcome is not in progress, though that may not be written yet.
        assert (marked.state, marked.result) == (states.SUCCESS, "marked")
        assert done.state == states.STARTED
        assert done.info == {"pid": staged["pid"], "hostname": worker.node}
        assert (single.state, single.info) == ("LOADING", {"file": "a"})
        assert (other.state, other.info) == ("PROGRESS", {"percent": 50})
        (site.directory / "go").write_text("now")
        results = [call.get(timeout=DEADLINE) for call in calls]
        assert results == ["marked", "done", "late", "late"]
        events.expect("task-succeeded", *(call.id for call in calls))
    for call in calls:
        (progress,) = [e for e in events.of(call.id) if e["type"] == "task-progress"]
        assert (progress["percent"], progress["hostname"]) == (50, worker.node)
    loading = [event for event in events.items if event["type"] == "task-loading"]
    assert [(event["uuid"], event["file"]) for event in loading] == [(single.id, "a")]


@pytest.mark.rabbitmq
def test_callers_hear_of_every_state_over_rpc(rabbitmq_url, deploy):
    site = deploy("monitoring_app", rabbitmq_url, "rpc://", task_track_started=True)
    heard = []
    with site.worker():
        calls = stages(site)
        site.reports.expect("staged")
        (site.directory / "go").write_text("now")
        for call in reversed(calls):
            call.get(timeout=DEADLINE, on_message=heard.append)
    told = {call.id: [m["status"] for m in heard if m["task_id"] == call.id] for call in calls}
    assert list(told.values()) == [
        ["STARTED", "SUCCESS"],
        ["STARTED", "SUCCESS"],
        ["STARTED", "PROGRESS", "LOADING", "SUCCESS"],
        ["STARTED", "PROGRESS", "SUCCESS"],
    ]


@pytest.mark.rabbitmq
@pytest.mark.redis
def test_what_was_done_before_its_worker_was_lost_is_not_run_again(rabbitmq_url, redis_url, deploy):
    site = deploy(
        "monitoring_app", rabbitmq_url, redis_url, worker_deduplicate_successful_tasks=True
    )
    os.mkfifo(site.directory / "go")
    once, follow = site.module.once, site.module.follow
    with monitoring(site) as events:
        with pytest.raises(Lost), site.worker("prefork", "-E") as worker:  # noqa: PT012 - see Lost
            calls = [once.apply_async((how,), link=follow.si(how)) for how in ("a", "b", "late")]
            site.reports.expect("marked")
            followed = site.reports.expect("followed", 2)
            events.expect("task-succeeded", *(report["id"] for report in followed))
            assert [call.state for call in calls] == ["SUCCESS", "SUCCESS", "PENDING"]
            raise Lost
        assert worker.process.returncode < 0
        with site.worker("prefork", "-E") as worker:
            assert calls[2].get(timeout=DEADLINE) == "late"
            followed = site.reports.expect("followed", 3)
            ids = [report["id"] for report in followed]
            events.expect("task-succeeded", *ids, *(call.id for call in calls))
            site.wait_until_active(worker, 0)
    first, second = site.reports.of("once")
    assert first["calls"] == [["a", False], ["b", False], ["late", False]]
    assert second["calls"] == [["late", True]]
    assert sorted(report["number"] for report in followed) == ["a", "b", "late"]
    assert site.messages_left() == 0


class Lost(Exception):
    """What a test raises for the harness to end its worker as a crash does: with SIGKILL."""


@pytest.fixture
def eager_app():
    app = Celery(broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


def eager_twins(app):
    """A batch task and an ordinary one that end as they are told."""

    @app.task(base=Batches, shared=False)
    def batch(requests):
        (request,) = requests
        if request.args[0] == "raised":
            raise KeyError("no luck")
        if request.args[0] == "failed":
            request.mark_as_failure(KeyError("no luck"))
        else:
            request.mark_as_done(request.args[0])

    @app.task(shared=False)
    def ordinary(how):
        if how in ("raised", "failed"):
            raise KeyError("no luck")
        return how

    return SimpleNamespace(batch=batch, ordinary=ordinary)


@pytest.mark.parametrize("stored", [True, False])
def test_eager_results_are_stored_only_if_that_is_wanted(stored, eager_app):
    eager_app.conf.task_store_eager_result = stored
    eager_app.conf.result_extended = True
    tasks = eager_twins(eager_app)
    for how in ("done", "raised", "failed"):
        batched, alone = (task.apply((how,)) for task in (tasks.batch, tasks.ordinary))
        ours, theirs = (eager_app.AsyncResult(result.id) for result in (batched, alone))
        assert ours.state == theirs.state == (batched.state if stored else states.PENDING)
        assert repr(ours.result) == repr(theirs.result)
        assert ours.name == (tasks.batch.name if stored else None)
    ignored = tasks.batch.apply(("done",), ignore_result=True)
    assert eager_app.AsyncResult(ignored.id).state == states.PENDING
