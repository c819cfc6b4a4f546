"""Each thing that can be wrong with a message, alone: it is refused, and its neighbours run."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from nonsense import NONSENSE, PROTOCOLS, call, nested, nonsense

from celery_batches import Batches
from kit.clock import Clock
from kit.log import Problems
from kit.worker import InProcessWorker, deliver


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nonsense_is_refused_alone(tasks: Any, clock: Clock, protocol: str, what: str) -> None:
    """It is settled once and logged once; the neighbours run, and nothing is left of it."""
    bad = nonsense(what, call("unit.late", "bad", [0], protocol))
    if bad == call("unit.late", "bad", [0], protocol):
        pytest.skip("this protocol has no such thing")
    for amqp in (True, False):
        with Problems() as problems:
            worker = InProcessWorker(tasks, clock, problems)
            good = [deliver(worker, call("unit.late", f"id-{i}"), amqp=amqp) for i in range(2)]
            tag = deliver(worker, bad, amqp=amqp)
            good += [deliver(worker, call("unit.late", f"id-{i}"), amqp=amqp) for i in (2, 3)]
            assert worker.batches == [good]
            worker.finish()
            assert [worker.channel.of(tag) for tag in good] == [["ack"]] * 4
            assert worker.channel.of(tag) in (["reject"], ["ack"])
            assert len(worker.refusals) == 1, worker.refusals
            undecodable = "Can't decode message body" in worker.refusals[0]
            assert worker.channel.of(tag) == ["ack" if undecodable else "reject"]
            worker.assert_empty()


@pytest.mark.parametrize(
    ("attribute", "value"), [("body", None), ("content_encoding", 5), ("content_type", [])]
)
def test_what_can_only_be_pushed_to_redis(
    tasks: Any, clock: Clock, attribute: str, value: Any
) -> None:
    """Without a body, Celery could not even log that it refuses a message."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        for name in ("unit.click", "no.such.task"):
            sent = call(name, "bad")
            setattr(sent, attribute, value)
            tag = deliver(worker, sent, amqp=False)
            assert worker.channel.of(tag) == ["reject"]
        assert len(worker.refusals) == 2
        worker.assert_empty()


@pytest.mark.parametrize("amqp", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        *({"x": 5}, {"shadow": ""}, {"shadow": "%s"}, {"retries": None}, {"timelimit": None}),
        *({"timelimit": []}, {"timelimit": [0, 1.5]}, {"stamps": []}, {"stamped_headers": []}),
        *({"stamped_headers": ["a"], "stamps": {"a": ["b"]}}, {"stamped_headers": ["a"]}),
        *({"callbacks": 5}, {"get": 5, "update": 5, "__class__": 5, "__dict__": 5}),
        *({"root_id": []}, {"group": {}}, {"argsrepr": 5}, {"x": json.loads(nested(200))}),
        *({"parent_id": "\ud800"}, {"x": b"\xff"}, {"ignore_result": "x"}, {"headers": 5}),
    ],
    ids=str,
)
def test_what_is_odd_but_can_be_run_is_run(
    tasks: Any, clock: Clock, headers: dict[str, Any], amqp: bool
) -> None:
    """A header that is nobody's business but the call's own does not keep it from running."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        sent = [call("unit.late", f"id-{i}", **headers) for i in range(4)]
        tags = [deliver(worker, one, amqp=amqp) for one in sent]
        worker.finish()
        assert worker.batches == [tags]
        assert worker.refusals == []
        assert [worker.channel.of(tag) for tag in tags] == [["ack"]] * 4
        worker.assert_empty()


@pytest.mark.parametrize("ident", [5, UUID(int=7)], ids=repr)
def test_an_id_that_is_no_string_but_a_key(tasks: Any, clock: Clock, ident: Any) -> None:
    """Celery runs such calls, where no result backend objects, and so do batches."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        tags = [deliver(worker, call("unit.late", f"id-{i}")) for i in range(3)]
        tags.append(deliver(worker, call("unit.late", ident)))
        worker.finish()
        assert worker.batches == [tags]
        assert [worker.channel.of(tag) for tag in tags] == [["ack"]] * 4


@pytest.mark.parametrize("depth", [10, 100, 200, 300, 400, 430, 460, 490, 600, 900])
@pytest.mark.parametrize("where", ["args", "headers"])
def test_deep_nesting_never_takes_a_batch_along(
    tasks: Any, clock: Clock, where: str, depth: int
) -> None:
    """What JSON can just decode may be too deep to be sent to the pool: it is refused at once."""
    value = json.loads(nested(depth))
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        good = [deliver(worker, call("unit.late", f"id-{i}")) for i in range(3)]
        deep = call("unit.late", "deep", **({"x": value} if where == "headers" else {}))
        if where == "args":
            deep.body = f"[[{nested(depth)}], {{}}, {{}}]".encode()
        tag = deliver(worker, deep)
        worker.finish()
        assert all(worker.channel.of(tag) == ["ack"] for tag in good)
        assert worker.runs[tag] + len(worker.refusals) == 1
        assert len(worker.channel.of(tag)) == 1
        if depth <= 200:
            assert worker.runs[tag] == 1
        worker.assert_empty()


def test_a_number_of_retries_without_bounds(tasks: Any, clock: Clock) -> None:
    """The retries that a message claims to have had do not become a number without end."""

    @tasks.task(name="unit.backoff", base=Batches, autoretry_for=(KeyError,), retry_backoff=True)
    def backoff(requests: Any) -> None:
        raise KeyError("x")

    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        numbers = {"none": None, "small": 1, "large": 10**12, "huge": 2**62}
        for task_id, retries in numbers.items():
            deliver(worker, call("unit.backoff", task_id, retries=retries))
        worker.finish()
        assert [worker.channel.of(tag) for tag in range(4)] == [["ack"]] * 4
        worker.assert_empty()
    states = {task_id: tasks.AsyncResult(task_id).state for task_id in numbers}
    assert states == {"none": "FAILURE", "small": "RETRY", "large": "FAILURE", "huge": "FAILURE"}


def test_no_header_says_that_a_call_is_run_eagerly(tasks: Any, clock: Clock) -> None:
    """Only the process that runs a call eagerly says so."""
    seen = []

    class Curious(Batches):
        def on_success(self, *args: Any) -> None:
            seen.append(self.request.is_eager)

    @tasks.task(name="unit.curious", base=Curious, flush_every=1)
    def curious(requests: Any) -> None: ...

    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        sent = call("unit.curious", "1", is_eager=True)
        payload = json.loads(sent.body)
        payload[2].update(is_eager=True, _celery_batches_running="x")
        sent.body = json.dumps(payload).encode()
        deliver(worker, sent)
        worker.finish()
        assert problems.lines == []
    assert seen == [False]


def test_a_look_up_that_fails_is_the_concern_of_one(tasks: Any, clock: Clock) -> None:
    """A call that comes again with callbacks that cannot be called does not fail its neighbours."""
    tasks.conf.worker_deduplicate_successful_tasks = True
    tasks.backend.persistent = True
    tasks.backend.mark_as_done("bad", 1)
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        good = [deliver(worker, call("unit.late", f"id-{i}"), again=True) for i in range(3)]
        sent = call("unit.late", "bad")
        sent.body = b'[[], {}, {"callbacks": 5, "errbacks": null, "chain": null, "chord": null}]'
        tag = deliver(worker, sent, again=True)
        worker.finish()
        assert worker.batches == [good[:2], [good[2], tag]]
        assert tasks.ran == [["id-0", "id-1"], ["id-2"]]
        assert [worker.channel.of(tag) for tag in [*good, tag]] == [["ack"]] * 4
        worker.assert_empty()
