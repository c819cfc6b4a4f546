"""``unique_key``: of the requests with one key the body gets one, and the others end as it does."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Any

import pytest

from celery_batches import Batches
from celery_batches.pool.trace import trace_batch
from celery_batches.testing import BatchResult, make_request, run_batch
from kit.log import messages
from kit.tracing import World

CALLS = [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6)]


def of_name(request: Any) -> Any:
    return request.args[0]


@pytest.fixture
def world(app: Any) -> World:
    return World(app)


def run(world: World, body: Any = None, calls: Any = CALLS, **options: Any) -> BatchResult:
    """Run a batch; unless there is a body, each request is done with its arguments."""

    def mark(requests: Any) -> None:
        for request in requests:
            request.mark_as_done(list(request.args))

    options = {"unique_key": of_name, "name": f"unit.unique{len(world.app.tasks)}", **options}
    return run_batch(world.define(body or mark, **options), calls)


def test_the_body_gets_one_of_each_key(world: World) -> None:
    """The last in order of arrival, or the first. The others have its result."""
    seen: list[Any] = []

    def body(requests: Any) -> None:
        seen.append([tuple(request.args) for request in requests])
        for request in requests:
            request.mark_as_done(request.args[1])

    batch = run(world, body)
    assert seen.pop() == [("c", 4), ("b", 5), ("a", 6)]
    assert batch.results == [6, 5, 6, 4, 5, 6]
    assert batch.states == ["SUCCESS"] * 6
    batch = run(world, body, unique_keep="first")
    assert seen.pop() == [("a", 1), ("b", 2), ("c", 4)]
    assert batch.results == [1, 2, 1, 4, 2, 1]
    assert len(run(world, body, unique_key=None).results) == len(seen.pop()) == 6


class Keyed:
    def __call__(self, request: Any) -> Any:
        return request.args[0]


class WithMethod(Batches):
    abstract = True
    index = 0

    def unique_key(self, request: Any) -> Any:
        return request.args[self.index]


class WithStatic(Batches):
    abstract = True
    unique_key = staticmethod(of_name)


class WithProperty(Batches):
    abstract = True

    @property
    def unique_key(self) -> Any:
        return of_name


def with_default(request: Any, index: int = 0) -> Any:
    return request.args[index]


WAYS = {
    "a function": {"unique_key": of_name},
    "a lambda": {"unique_key": lambda request: request.args[0]},
    "a function with a default": {"unique_key": with_default},
    "a partial": {"unique_key": partial(with_default, index=0)},
    "an object": {"unique_key": Keyed()},
    **{base.__name__: {"base": base} for base in (WithMethod, WithStatic, WithProperty)},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_ways_to_give_the_key(world: World, options: Any) -> None:
    """Celery makes an option an attribute of a class, so that a function becomes a method."""
    seen: list[int] = []
    task = world.define(lambda requests: seen.append(len(requests)), **options)
    run_batch(task, CALLS)
    assert seen == [3]


def test_it_is_read_when_it_is_used(world: World) -> None:
    """So it may be set on the task in a running worker."""
    seen: list[int] = []
    task = world.define(lambda requests: seen.append(len(requests)), unique_key=of_name)
    task.unique_key = lambda request: request.args[1]
    run_batch(task, CALLS)
    task.unique_key = None
    run_batch(task, CALLS)
    assert seen == [6, 6]
    task.unique_key, task.unique_keep = of_name, "first"
    run_batch(task, CALLS)
    assert seen == [6, 6, 3]


def test_the_name_of_a_keyword_argument(world: World) -> None:
    """None is a key like any other. A call without the argument fails alone."""
    seen: list[Any] = []
    calls = [make_request(kwargs={"user": user}) for user in (1, None, 1, None)]
    calls.append(make_request([1]))
    task = world.define(lambda requests: seen.extend(requests), unique_key="user")
    batch = run_batch(task, calls)
    assert seen == calls[2:4]
    assert batch.states == ["PENDING"] * 4 + ["FAILURE"]
    message = str(batch.outcomes[4].exception)
    assert message == (
        "Task 'unit.click': unique_key is 'user', but the call has no such keyword argument. "
        "Call the task as unit.click.delay(user=...)"
    )


@pytest.mark.parametrize("keep", ["first", "last"])
def test_a_key_that_cannot_be_computed_fails_its_call_alone(
    world: World, keep: str, caplog: Any
) -> None:
    """So does one that cannot be hashed. The log names the task, the request and the option."""
    calls = [("a",), (), ([],), ("a",), ("b",)]
    batch = run(world, calls=calls, unique_keep=keep)
    assert batch.states == ["SUCCESS", "FAILURE", "FAILURE", "SUCCESS", "SUCCESS"]
    kinds = [type(outcome.exception) for outcome in batch if outcome.exception]
    assert kinds == [IndexError, TypeError]
    lines = messages(caplog, logging.ERROR)
    assert len(lines) == 2
    assert all(re.match(r"Task unit\.unique\d+\[\S+\] has no unique_key: ", line) for line in lines)


def test_the_body_is_not_called_without_requests(world: World) -> None:
    """If every key fails, there is nothing to run."""
    seen: list[Any] = []
    batch = run(world, lambda requests: seen.append(requests), [(), ()])
    assert (batch.states, seen) == (["FAILURE"] * 2, [])


def test_they_end_alike(world: World) -> None:
    """Failed, retried under their own ids, rejected, or left unmarked."""

    def body(requests: Any) -> None:
        for request in requests:
            match request.args[0]:
                case "a":
                    request.mark_as_failure(KeyError("x"))
                case "b":
                    request.retry(countdown=3)
                case "c":
                    request.reject()

    calls = [make_request([name], id=f"{name}{n}") for n in range(2) for name in "abcd"]
    batch = run(world, body, calls)
    assert batch.states == ["FAILURE", "RETRY", "REJECTED", "PENDING"] * 2
    retries = [outcome.retry for outcome in batch if outcome.retry]
    assert [retry.sig.options["task_id"] for retry in retries] == ["b0", "b1"]

    def raising(requests: Any) -> None:
        requests[0].mark_as_done("fine")
        raise ValueError("late")

    batch = run(world, raising, [("a",), ("b",), ("b",), ("a",)])
    assert batch.results == [None, "fine", "fine", None]
    assert batch.states == ["FAILURE", "SUCCESS", "SUCCESS", "FAILURE"]


def test_a_retry_counts_for_each_of_them(world: World) -> None:
    """They are retried at the same time. One that may not be retried any more fails."""

    def body(requests: Any) -> None:
        raise OSError("busy")

    options: dict[str, Any] = {"autoretry_for": (OSError,), "retry_backoff": 2, "max_retries": 3}
    calls = [make_request(["a"], retries=retries) for retries in (0, 3, 1)]
    batch = run(world, body, calls, retry_jitter=False, **options)
    assert batch.states == ["RETRY", "FAILURE", "RETRY"]
    assert [outcome.retry.when for outcome in batch if outcome.retry] == [4, 4]
    assert repr(batch.outcomes[1].exception) == "OSError('busy')"


def test_each_has_its_own_state_link_and_handlers(world: World, caplog: Any) -> None:
    """To its caller, a duplicate is a task like any other. The log counts them."""
    said: list[str] = []

    class Handled(Batches):
        abstract = True

        def before_start(self, task_id: str, *args: Any) -> None:
            said.append(f"before {task_id}")

        def on_success(self, retval: Any, task_id: str, *args: Any) -> None:
            said.append(f"success {task_id}")

    def body(self: Any, requests: Any) -> None:
        (request,) = requests
        world.app.backend.mark_as_done(request.id, 7, request=request)

    caplog.set_level(logging.INFO, "celery_batches.trace")
    world.define(body, bind=True, base=Handled, unique_key=lambda request: 0)
    linked = {"callbacks": [world.callback.s()]}
    world.run(None, linked, {}, linked)
    assert world.states == ["SUCCESS"] * 3
    assert world.called == [("callback", 7)] * 2
    assert said == [f"{what} id-{n}" for what in ("before", "success") for n in range(3)]
    (line,) = [line for line in messages(caplog, logging.INFO) if "Batch" in line]
    assert line.endswith("(2 duplicates)")


def test_with_the_other_options(world: World) -> None:
    """`return_results` and `bisect_on_failure` are about the requests that the body gets."""

    def body(requests: Any) -> Any:
        numbers = [request.args[1] for request in requests]
        if 5 in numbers:
            raise ValueError
        return numbers

    batch = run(world, body, return_results=True, bisect_on_failure=True)
    assert batch.results == [6, None, 6, 4, None, 6]
    assert batch.states == ["SUCCESS", "FAILURE", "SUCCESS", "SUCCESS", "FAILURE", "SUCCESS"]


def test_other_arguments_of_the_body(world: World) -> None:
    """A list of requests that an overridden flush gives the body is shortened too."""
    seen: list[Any] = []
    task = world.define(
        lambda requests, more: seen.append(([each.id for each in requests], more)),
        unique_key=lambda request: request.id == "id-1",
    )
    requests = world.requests()
    trace_batch(task.name, "b", requests, "size", "w@h", (requests, [1, 2, 3]))
    assert seen == [(["id-1", "id-2"], [1, 2, 3])]
    assert [request.id for request in requests] == ["id-0", "id-1", "id-2"]
