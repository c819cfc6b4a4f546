"""`request.context()` and `request.update_state()`: a body acts for one request of its batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import current_task
from celery.exceptions import Retry

from celery_batches.testing import run_batch
from kit.messages import IDS
from kit.tracing import World, exceptions


@pytest.fixture
def world(app: Any) -> World:
    return World(app, bind=True)


def test_the_request_is_the_current_one(world: World) -> None:
    """As in an ordinary task, and in a thread of the body. Afterwards, it is the batch again."""
    seen: list[Any] = []

    def look(request: Any) -> tuple[Any, ...]:
        with request.context() as context:
            now = current_task.request
            assert now is context
            return now.id, now.root_id, now.args, now.retries, now.is_eager, current_task.name

    def body(self: Any, requests: Any) -> None:
        seen.extend(map(look, requests))
        with ThreadPoolExecutor(1) as threads:
            seen.append(threads.submit(look, requests[0]).result())
        seen.append(self.request.id)

    world.run(body, {"retries": 2})
    name = world.task.name
    first = ("id-0", "id-0", ["id-0"], 2, False, name)
    assert seen[0] == seen[3] == first
    assert [each[0] for each in seen[:3]] == IDS
    assert seen[4] == "batch"


def test_its_task_has_its_own_name(world: World) -> None:
    """A call that the sender has given another name is a call of this task all the same."""
    names: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        with requests[0].context() as context:
            names.extend((requests[0].name, context.task))

    world.define(body)
    world.run(None, {"shadow": "other"})
    assert names == ["other", world.task.name]


def test_what_is_sent_inside_has_the_request_as_its_parent(world: World) -> None:
    """As a task that an ordinary task sends. Outside, the batch is the parent."""
    world.app.conf.task_always_eager = False

    def body(self: Any, requests: Any) -> None:
        for request in requests:
            with request.context():
                world.following.delay(1)
        world.following.delay(1)

    world.run(body, {"root_id": "root"})
    parents = [(sent["parent_id"], sent["root_id"]) for _, sent in world.sent]
    assert parents == [("id-0", "root"), ("id-1", "id-1"), ("id-2", "id-2"), ("batch", "batch")]


def test_retry_of_the_task_retries_this_request_and_leaves_the_block(world: World) -> None:
    """The loop of the body goes on. Arguments of the retry are allowed, since it is one request."""
    after: list[str] = []

    def body(self: Any, requests: Any) -> None:
        for request in requests:
            with request.context():
                if request.id == "id-1":
                    try:
                        raise OSError("busy")
                    except OSError as exc:
                        self.retry(["again"], exc=exc, countdown=5)
                after.append(request.id)
                request.mark_as_done(request.id)
            after.append("next")

    world.app.conf.task_always_eager = False
    _, retried, _ = exceptions(world.run(body))
    assert after == ["id-0", "next", "next", "id-2", "next"]
    assert isinstance(retried, Retry)
    assert repr(retried.exc) == "OSError('busy')"
    ((name, sent),) = world.sent
    assert (name, sent["id"], sent["retries"]) == (world.task.name, "id-1", 1)
    assert list(sent["body"][0]) == ["again"]
    assert world.states == ["SUCCESS", "RETRY", "SUCCESS"]


def test_other_exceptions_leave_the_block_and_the_body(world: World) -> None:
    """So does a `Retry` that another one raised: without `context()`, it ends the body too."""

    def failing(self: Any, requests: Any) -> None:
        with requests[0].context():
            raise KeyError("x")

    assert [repr(exc) for exc in exceptions(world.run(failing))] == ["KeyError('x')"] * 3

    def raises(self: Any, requests: Any) -> None:
        with requests[0].context():
            assert isinstance(self.retry(throw=False), Retry)
            raise Retry("by hand")

    reports = run_batch(world.define(raises, name="unit.raises"), [(1,), (2,)])
    assert reports.states == ["RETRY", "RETRY"]
    assert isinstance(reports.exception, Retry)
    assert reports.exception.message == "by hand"


def test_marks_by_the_backend_inside(world: World) -> None:
    """The backend is told the id alone, as 0.11 allows. The mark counts, inside as outside."""

    def body(self: Any, requests: Any) -> None:
        with requests[0].context():
            for request in requests[:2]:
                world.app.backend.mark_as_done(request.id, 5)
        raise KeyError("afterwards")

    assert [failed for failed, _ in world.run(body)] == [False, False, True]
    assert world.states == ["SUCCESS", "SUCCESS", "FAILURE"]


def test_a_state_has_what_the_backend_stores_of_a_call(world: World) -> None:
    """As with `Task.update_state`, whose other arguments are those of the backend."""
    world.app.conf.result_extended = True
    found: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        requests[0].update_state("PROGRESS")
        self.update_state("id-1", "PROGRESS", traceback="so far")
        found.extend(map(world.app.backend.get_task_meta, IDS[:2]))

    world.run(body)
    assert [meta["args"] for meta in found] == [["id-0"], ["id-1"]]
    assert [meta["traceback"] for meta in found] == [None, "so far"]


def test_states_of_one_request(world: World) -> None:
    """By the request, and by the task in the request's context. The others have none."""
    said: list[list[str]] = []

    def body(self: Any, requests: Any) -> None:
        requests[0].update_state("PROGRESS", {"done": 1})
        with requests[1].context():
            self.update_state(state="HALF", meta={"done": 2})
        said.append(world.states)
        said.append([world.app.AsyncResult(id).info for id in IDS])
        for request in requests:
            request.mark_as_done()

    world.run(body)
    assert said == [["PROGRESS", "HALF", "PENDING"], [{"done": 1}, {"done": 2}, None]]
    assert world.states == ["SUCCESS"] * 3


def test_a_batch_that_records_only_stores_no_states(world: World) -> None:
    """In `celery_batches.testing`, all three ways are allowed and do nothing."""

    def body(self: Any, requests: Any) -> None:
        requests[0].update_state("PROGRESS")
        self.update_state(state="PROGRESS")
        with requests[0].context():
            self.update_state(state="PROGRESS")

    (outcome,) = run_batch(world.define(body), [()])
    assert world.app.AsyncResult(outcome.request.id).state == "PENDING"


@pytest.mark.parametrize("method", ["context", "update_state"])
def test_outside_of_a_running_batch_they_are_refused(world: World, method: str) -> None:
    """Before and after: the error names the request and the method."""
    args = () if method == "context" else ("PROGRESS",)
    kept: list[Any] = []
    world.run(lambda self, requests: kept.extend(requests))
    for request in (kept[0], world.requests()[0]):
        with pytest.raises(RuntimeError, match=rf"id-0.*{method}\(\) works while the body"):
            getattr(request, method)(*args)
