"""``return_results``: what the body returns becomes the outcome of each request."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, Retry

from celery_batches.testing import make_request, run_batch
from kit.log import messages
from kit.messages import IDS
from kit.tracing import World


@pytest.fixture
def world(app: Any) -> World:
    return World(app, return_results=True)


def returning(world: World, value: Any, **options: Any) -> Any:
    """A task whose body returns this, or what it returns for the requests."""

    def body(requests: Any) -> Any:
        return value(requests) if callable(value) else value

    return world.define(body, **options)


CALLS = [make_request([number], id=f"id-{number}") for number in range(3)]

RIGHT = {
    "a list": [0, 1, 2],
    "a tuple": (0, 1, 2),
    "a dict": {"id-2": 2, "id-0": 0, "id-1": 1},
}


@pytest.mark.parametrize("returned", RIGHT.values(), ids=RIGHT)
def test_each_request_gets_its_item(world: World, returned: Any) -> None:
    """Whatever the order of the dict. The batch has succeeded, and says what was returned."""
    batch = run_batch(returning(world, returned), CALLS)
    assert (batch.states, batch.results) == (["SUCCESS"] * 3, [0, 1, 2])
    assert (batch.returned, batch.exception) == (returned, None)


def test_results_are_stored_and_continue(world: World) -> None:
    """As marks are: states in the backend, links called."""
    task = returning(world, [["any"], None, {"thing": 1}])
    linked = {"callbacks": [world.callback.s()]}
    world.run(None, linked, {}, linked)
    assert world.states == ["SUCCESS"] * 3
    assert [world.app.AsyncResult(id).result for id in IDS] == [["any"], None, {"thing": 1}]
    assert world.called == [("callback", ["any"]), ("callback", {"thing": 1})]
    assert task.apply((1,)).state == "FAILURE"  # One call, three results.


def test_exceptions_in_the_list(world: World) -> None:
    """One fails its request alone. `Ignore`, `Reject` and `Retry` mean what they mean if raised."""
    items = [KeyError("x"), Ignore(), Reject(requeue=True), Retry("by hand", exc=OSError("y")), 5]
    batch = run_batch(returning(world, items), [(n,) for n in range(5)])
    assert batch.states == ["FAILURE", "IGNORED", "REJECTED", "RETRY", "SUCCESS"]
    assert batch.outcomes[0].exception is items[0]
    assert batch.exception is None


def test_autoretry_for_does_not_apply_to_them(world: World) -> None:
    """They say what becomes of the request, whichever exceptions are chosen."""
    items = [Ignore(), Reject(), Retry(), OSError()]
    task = returning(world, items, autoretry_for=(Exception,))
    batch = run_batch(task, [(n,) for n in range(4)])
    assert batch.states == ["IGNORED", "REJECTED", "RETRY", "RETRY"]
    signatures = [getattr(outcome.retry, "sig", None) for outcome in batch]
    assert signatures[:3] == [None] * 3  # By hand, nothing is sent.
    assert signatures[3] is not None


def test_a_long_list_is_not_written_out(world: World, caplog: Any) -> None:
    """Each result is written out for its own report. The log line has the first of them."""
    written: list[int] = []

    class Item:
        def __repr__(self) -> str:
            written.append(1)
            return "an item of the list"

    def body(requests: Any) -> Any:
        return [Item() for _ in requests]

    task = world.define(body, ignore_result=True)
    caplog.set_level(logging.WARNING, "celery_batches.trace")
    run_batch(task, [(n,) for n in range(100)])
    assert 100 <= len(written) < 110
    caplog.set_level(logging.INFO, "celery_batches.trace")
    run_batch(task, [(n,) for n in range(100)])
    (line,) = [line for line in messages(caplog, logging.INFO) if "succeeded" in line]
    assert line.endswith(", ...]")
    assert line.count("an item") in range(5, 15)
    assert len(written) < 230


def test_marks_come_first(world: World) -> None:
    """What was marked keeps its outcome, and needs no item in a dict."""

    def mark(requests: Any) -> Any:
        requests[0].mark_as_failure(KeyError("marked"))
        return [1, 2, 3]

    assert run_batch(returning(world, mark), CALLS).results == [None, 2, 3]

    def mark_and_omit(requests: Any) -> Any:
        requests[0].mark_as_done("marked")
        return {"id-1": 2, "id-2": 3}

    task = returning(world, mark_and_omit, name="unit.omit")
    assert run_batch(task, CALLS).results == ["marked", 2, 3]


def test_a_message_that_was_delivered_twice(world: World) -> None:
    """Two requests with one id: by id both have its result, and neither is left out unnoticed."""
    twice = [make_request([n], id="the-id") for n in range(2)]
    assert run_batch(returning(world, {"the-id": 7}), twice).results == [7, 7]

    def mark_one(requests: Any) -> Any:
        requests[1].mark_as_done("marked")
        return {}

    batch = run_batch(returning(world, mark_one, name="unit.one"), twice)
    assert batch.states == ["FAILURE", "SUCCESS"]
    assert "1 missing ids, such as 'the-id'" in str(batch.exception)


@pytest.mark.parametrize("returned", [None, [], "done", {}, {"other": 1}])
def test_if_all_are_marked_nothing_has_to_be_returned(world: World, returned: Any) -> None:
    """As in a body that was written before the option was set for all tasks."""

    def mark(requests: Any) -> Any:
        for request in requests:
            request.mark_as_done(request.args[0])
        return returned

    batch = run_batch(world.define(mark), CALLS)
    assert (batch.results, batch.exception) == ([0, 1, 2], None)


def numbers(requests: Any) -> Any:
    yield from range(len(requests))


BUT = "Task 'unit.wrong': return_results is on, but the body returned "
WRONG = {
    "too few": ([1, 2], ValueError, "2 results for 3 requests"),
    "too many": ([1, 2, 3, 4], ValueError, "4 results for 3 requests"),
    "an empty list": ([], ValueError, "0 results for 3 requests"),
    "None": (None, TypeError, "None for 3 requests"),
    "a string of that length": ("abc", TypeError, "a str for 3 requests"),
    "a set": ({1, 2, 3}, TypeError, "a set for 3 requests"),
    "a range": (range(3), TypeError, "a range for 3 requests"),
    "missing ids": (
        {"id-0": 1},
        ValueError,
        "a dict of 1 results for 3 requests: 2 missing ids, such as 'id-1', 'id-2'",
    ),
    "unknown ids": (
        {**dict.fromkeys(IDS), "other": 1},
        ValueError,
        "a dict of 4 results for 3 requests: 1 unknown ids, such as 'other'",
    ),
    "both": (
        {0: 1, 1: 2, 2: 3},
        ValueError,
        "3 missing ids, such as 'id-0', 'id-1', 'id-2' and 3 unknown ids, such as 0, 1, 2",
    ),
}


@pytest.mark.parametrize(("returned", "error", "text"), WRONG.values(), ids=WRONG)
def test_what_is_no_list_of_results(
    world: World, returned: Any, error: Any, text: str, caplog: Any
) -> None:
    """Every request without an outcome fails with an error that names counts and fix."""

    marked = not isinstance(returned, dict)

    def body(requests: Any) -> Any:
        if marked:
            requests[1].mark_as_done("marked")
        return returned

    batch = run_batch(world.define(body, name="unit.wrong"), CALLS)
    assert batch.states == ["FAILURE", "SUCCESS" if marked else "FAILURE", "FAILURE"]
    assert type(batch.exception) is error
    assert text in str(batch.exception)
    assert str(batch.exception).startswith(BUT)
    assert "Return a list or tuple with one item for each request" in str(batch.exception)
    (line,) = messages(caplog, logging.ERROR)
    assert "raised unexpected" in line


@pytest.mark.parametrize("return_results", [True, False])
def test_a_body_of_which_nothing_has_run(app: Any, return_results: bool) -> None:
    """A plain function that returns a generator, as some decorators make it."""

    async def stream(requests: Any) -> Any:
        yield

    world = World(app, return_results=return_results)
    for number, (made, what) in enumerate([(numbers, "generator"), (stream, "async_generator")]):
        body = world.define(lambda requests, made=made: made(requests), name=f"unit.n{number}")
        batch = run_batch(body, CALLS)
        assert batch.states == ["FAILURE"] * 3
        assert isinstance(batch.exception, TypeError)
        assert f"Task 'unit.n{number}': the body returned a {what}" in str(batch.exception)


def test_autoretry_for_applies_to_one_item(world: World) -> None:
    """Each by its own count. What is not chosen, or is excluded, fails."""
    items = [OSError("a"), TimeoutError("b"), KeyError("c"), "d", OSError("e")]
    task = returning(
        world,
        items,
        autoretry_for=(OSError,),
        dont_autoretry_for=(TimeoutError,),
        retry_kwargs={"countdown": 9},
        max_retries=2,
    )
    calls = [make_request(), make_request(), make_request(), make_request()]
    batch = run_batch(task, [*calls, make_request(retries=2)])
    assert batch.states == ["RETRY", "FAILURE", "FAILURE", "SUCCESS", "FAILURE"]
    assert batch.outcomes[0].retry is not None
    assert batch.outcomes[0].retry.when == 9
    assert batch.outcomes[0].exception is items[0]
    assert repr(batch.outcomes[4].exception) == "OSError('e')"


def test_backoff_of_one_item(world: World) -> None:
    """By the count of its own retries."""
    task = returning(
        world,
        [OSError(), OSError()],
        autoretry_for=(OSError,),
        retry_backoff=2,
        retry_jitter=False,
    )
    batch = run_batch(task, [make_request(retries=1), make_request(retries=0)])
    assert [outcome.retry.when for outcome in batch if outcome.retry] == [4, 2]


def test_without_the_option_nothing_changes(app: Any) -> None:
    """The default: the value is for the log."""
    batch = run_batch(World(app).define(lambda requests: [1, 2, 3]), CALLS)
    assert (batch.states, batch.returned) == (["PENDING"] * 3, [1, 2, 3])


def test_an_eager_call_has_its_item_as_result(world: World) -> None:
    """A batch of one."""
    task = returning(world, lambda requests: [request.args[0] * 2 for request in requests])
    assert task.apply((21,)).get() == 42
    failing = returning(world, lambda requests: [KeyError("x")], name="unit.failing")
    assert failing.apply((1,)).state == "FAILURE"
    with pytest.raises(KeyError):
        failing.apply((1,), throw=True)


ITEMS: dict[str, Any] = {
    "a value": 5,
    "an error": KeyError("x"),
    "one to retry": OSError("y"),
    "Ignore": Ignore(),
    "Reject": Reject(requeue=True),
    "Retry": Retry("by hand"),
}


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)
def test_an_eager_call_ends_as_an_ordinary_one(app: Any, item: Any) -> None:
    """Which returns that value, or raises it. With every option, and whatever else they say."""
    retry: dict[str, Any] = {"autoretry_for": (OSError,), "max_retries": 1}
    retry["retry_kwargs"] = {"countdown": 0}

    @app.task(name="unit.ordinary", **retry)
    def ordinary() -> Any:
        if isinstance(item, Exception):
            raise item
        return item

    world = World(app, return_results=True, **retry)
    by_id = {"bisect_on_failure": True, "unique_key": lambda request: 0, "name": "unit.by_id"}
    tasks = [
        ordinary,
        world.define(lambda requests: [item], name="unit.list"),
        world.define(lambda requests: {requests[0].id: item}, **by_id),
    ]
    results = [task.apply() for task in tasks]
    expected, *found = [(result.state, repr(result.result)) for result in results]
    assert found == [expected] * 2
    assert {bool(result.traceback) for result in results} == {isinstance(item, Exception)}


def test_it_is_read_when_it_is_used(world: World) -> None:
    """A property, or an assignment in a running worker."""
    task = returning(world, [1, 2, 3])
    task.return_results = False
    assert run_batch(task, CALLS).states == ["PENDING"] * 3
