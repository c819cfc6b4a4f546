"""``bisect_on_failure``: the body runs again in halves until what makes it raise is alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import signals
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_batches import Batches
from celery_batches.testing import BatchResult, make_request, run_batch
from kit.log import messages
from kit.messages import IDS
from kit.tracing import World


class Poison(ValueError):
    """What the body raises for a poisonous request."""


class Counted:
    """A body that fails for some numbers, and notes what it was called with.

    Arguments:
        poison: For each of these numbers, what to raise.
        marks: Whether it marks the requests, as a bulk write does that is all or nothing.
    """

    def __init__(self, *poison: int, raises: Any = Poison, marks: bool = True) -> None:
        self.poison, self.raises, self.marks = poison, raises, marks
        self.calls: list[list[int]] = []

    def __call__(self, requests: Any) -> Any:
        numbers = [request.args[0] for request in requests]
        self.calls.append(numbers)
        for number in numbers:
            if number in self.poison:
                raise self.raises(number)
        if self.marks:
            for request in requests:
                request.mark_as_done(request.args[0])
        return numbers

    @property
    def body(self) -> Any:
        def body(requests: Any) -> Any:
            return self(requests)

        return body


def run(world: World, counted: Counted, size: int = 8, **options: Any) -> BatchResult:
    options = {"bisect_on_failure": True, "name": f"unit.{id(counted)}", **options}
    task = world.define(counted.body, **options)
    return run_batch(task, [(number,) for number in range(size)])


@pytest.fixture
def world(app: Any) -> World:
    return World(app)


@pytest.mark.parametrize(
    ("poison", "most"), [((37,), 16), ((0,), 16), ((99,), 16), ((5, 50, 95), 40), ((), 1)]
)
def test_poison_is_found(world: World, poison: tuple[int, ...], most: int) -> None:
    """Of 100 requests only the poisonous fail, with their own exceptions, in few runs."""
    counted = Counted(*poison)
    batch = run(world, counted, 100, flush_every=100)
    failed = [outcome for outcome in batch if outcome.state == "FAILURE"]
    assert [outcome.request.args[0] for outcome in failed] == list(poison)
    assert [repr(outcome.exception) for outcome in failed] == [f"Poison({n})" for n in poison]
    assert batch.states.count("SUCCESS") == 100 - len(poison)
    assert len(counted.calls) <= most
    assert batch.exception is None


def test_how_often_the_body_runs(world: World) -> None:
    """The counts of the documentation: for one of 100, and for three at best and worst."""
    counts = set()
    for number in (*range(0, 100, 7), 99):
        counted = Counted(number, marks=False)
        run(world, counted, 100, name="unit.one", return_results=True)
        world.app.tasks.unregister("unit.one")
        counts.add(len(counted.calls))
    assert counts == {13, 15}
    for poison, runs in {(0, 1, 2): 15, (1, 26, 51): 37}.items():
        counted = Counted(*poison)
        run(world, counted, 100)
        assert len(counted.calls) == runs


def test_in_order_and_only_without_an_outcome(world: World) -> None:
    """The first half runs first. Marked requests do not run again."""
    calls: list[list[int]] = []

    def body(requests: Any) -> None:
        calls.append([request.args[0] for request in requests])
        if 1 in calls[-1]:
            for request in requests:
                if request.args[0] == 0:
                    request.mark_as_done()
            raise Poison

    batch = run_batch(world.define(body, bisect_on_failure=True), [(n,) for n in range(5)])
    assert calls == [[0, 1, 2, 3, 4], [1, 2], [1], [2], [3, 4]]
    assert batch.states == ["SUCCESS", "FAILURE", "PENDING", "PENDING", "PENDING"]


def test_only_the_chosen_exceptions(world: World) -> None:
    """Others end the batch, as without the option; in a half, they end that half."""
    counted = Counted(3)
    assert run(world, counted, bisect_on_failure=(KeyError, OSError)).states == ["FAILURE"] * 8
    assert len(counted.calls) == 1
    counted = Counted(3)
    assert run(world, counted, bisect_on_failure=Poison).states.count("FAILURE") == 1

    def second(number: int) -> Exception:
        return KeyError(number) if len(counted.calls) > 1 else Poison()

    counted = Counted(3, raises=second)
    batch = run(world, counted, bisect_on_failure=Poison)
    assert batch.states == ["FAILURE"] * 4 + ["SUCCESS"] * 4
    assert repr(batch.outcomes[0].exception) == "KeyError(3)"


@pytest.mark.parametrize("raised", [Retry(), Ignore(), Reject(), MemoryError(), OSError()])
def test_never_for_these(world: World, raised: Exception) -> None:
    """They are not about a request. (`OSError` is the control.)"""
    counted = Counted(3, raises=lambda number: raised)
    batch = run(world, counted)
    assert len(counted.calls) == (7 if type(raised) is OSError else 1)
    assert len(set(batch.states)) == (2 if type(raised) is OSError else 1)


@pytest.mark.parametrize("raised", [SoftTimeLimitExceeded, MemoryError])
def test_the_time_limit_covers_all_runs(world: World, raised: Any) -> None:
    """It ends the batch in whichever run: what has an outcome by then keeps it."""

    def later(number: int) -> Exception:
        return raised() if len(counted.calls) == 4 else Poison(number)

    counted = Counted(3, raises=later)
    batch = run(world, counted)
    assert counted.calls[1:] == [[0, 1, 2, 3], [0, 1], [2, 3]]
    assert batch.states == ["SUCCESS"] * 2 + ["FAILURE"] * 6
    assert isinstance(batch.exception, raised)


def test_all_of_them_fail(world: World, caplog: Any) -> None:
    """The batch has failed then, each request by its own exception."""
    batch = run(world, Counted(0, 1, 2, 3), 4)
    assert [repr(outcome.exception) for outcome in batch] == [f"Poison({n})" for n in range(4)]
    assert isinstance(batch.exception, Poison)
    *own, line = messages(caplog, logging.ERROR)
    assert [each.rsplit(" ", 1)[-1] for each in own] == [f"Poison({n})" for n in range(4)]
    assert line.startswith("Batch ")
    assert "raised unexpected" in line
    assert "body ran 7 times" in line


def test_one_request_does_not_run_again(world: World) -> None:
    """There is nothing to halve."""
    counted = Counted(0)
    assert run(world, counted, 1).states == ["FAILURE"]
    assert len(counted.calls) == 1


def test_with_autoretry_for_only_the_poison_is_retried(world: World) -> None:
    """With its own count and its own backoff."""
    counted = Counted(1, 6)
    options: dict[str, Any] = {"retry_backoff": 3, "retry_jitter": False, "max_retries": 2}
    task = world.define(counted.body, bisect_on_failure=True, autoretry_for=(Poison,), **options)
    calls = [make_request([number], retries=2 if number == 6 else 1) for number in range(8)]
    batch = run_batch(task, calls)
    assert batch.states == [
        *("SUCCESS", "RETRY", "SUCCESS", "SUCCESS", "SUCCESS", "SUCCESS", "FAILURE", "SUCCESS"),
    ]
    assert batch.outcomes[1].retry is not None
    assert batch.outcomes[1].retry.when == 6
    assert repr(batch.outcomes[6].exception) == "Poison(6)"
    assert batch.exception is None


def test_a_body_that_retries_by_itself_retries_its_half(world: World) -> None:
    """`self.retry()` is about the requests that the body was given."""

    def body(self: Any, requests: Any) -> None:
        numbers = [request.args[0] for request in requests]
        if len(numbers) == 4:
            raise Poison
        if 0 in numbers:
            self.retry(countdown=4)

    batch = run_batch(world.define(body, bind=True, bisect_on_failure=True), [(n,) for n in "0123"])
    assert batch.states == ["PENDING"] * 4
    task = world.define(body, bind=True, bisect_on_failure=True, name="unit.numbers")
    assert run_batch(task, [(n,) for n in range(4)]).states == ["RETRY"] * 2 + ["PENDING"] * 2


def test_with_return_results(world: World) -> None:
    """Each run returns the results of its own requests. A wrong length fails its half alone."""
    counted = Counted(2, marks=False)
    batch = run(world, counted, 5, return_results=True)
    assert batch.results == [0, 1, None, 3, 4]
    assert batch.states == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]

    def body(requests: Any) -> Any:
        if len(requests) == 4:
            raise Poison
        return [1] if requests[0].args[0] == 0 else [1, 2]

    options: dict[str, Any] = {"bisect_on_failure": True, "return_results": True}
    # The body has not raised, so it is not retried.
    for name, more in {"unit.short": {}, "unit.retry": {"autoretry_for": (ValueError,)}}.items():
        task = world.define(body, name=name, **options, **more)
        batch = run_batch(task, [(n,) for n in range(4)])
        assert batch.states == ["FAILURE", "FAILURE", "SUCCESS", "SUCCESS"]
        assert "1 results for 2 requests" in str(batch.outcomes[0].exception)


def test_a_result_of_the_wrong_shape_is_not_bisected(world: World) -> None:
    """That is the body's mistake, not a request's."""
    counted = Counted(marks=False)
    batch = run(world, counted, 4, return_results=True)
    assert batch.states == ["SUCCESS"] * 4

    def body(requests: Any) -> Any:
        counted.calls.append([])
        return [1]

    counted.calls.clear()
    task = world.define(body, bisect_on_failure=True, return_results=True, name="unit.short")
    assert run_batch(task, [(n,) for n in range(4)]).states == ["FAILURE"] * 4
    assert len(counted.calls) == 1


def test_signals_and_handlers_run_once(world: World, caplog: Any) -> None:
    """The batch is one task with one id, however often its body runs. The log says how often."""
    said: list[str] = []

    def prerun(task_id: str, **_: Any) -> None:
        said.append(f"prerun {task_id}")

    def postrun(task_id: str, state: str, **_: Any) -> None:
        said.append(f"postrun {state}")

    def failure(task_id: str, **_: Any) -> None:
        said.append(f"failure {task_id}")

    ids: list[str] = []

    class Handled(Batches):
        abstract = True

        def before_start(self, task_id: str, *args: Any) -> None:
            said.append(f"before {task_id}")

        def on_success(self, retval: Any, task_id: str, *args: Any) -> None:
            said.append(f"success {task_id}")

        def on_failure(self, exc: Any, task_id: str, *args: Any) -> None:
            said.append(f"failed {task_id}")

    def body(self: Any, requests: Any) -> None:
        ids.append(self.request.id)
        if "id-1" in [request.id for request in requests]:
            raise Poison
        for request in requests:
            request.mark_as_done()

    caplog.set_level(logging.INFO, "celery_batches.trace")
    world.define(body, bisect_on_failure=True, bind=True, base=Handled, track_started=True)
    connected = ((signals.task_prerun, prerun), (signals.task_postrun, postrun))
    for signal, receiver in (*connected, (signals.task_failure, failure)):
        signal.connect(receiver)
    world.run(None)
    for signal, receiver in (*connected, (signals.task_failure, failure)):
        signal.disconnect(receiver)
    assert said == [
        "prerun batch",
        *(f"before {id}" for id in IDS),
        *("success id-0", "failed id-1", "failure id-1", "success id-2"),
        "postrun SUCCESS",
    ]
    assert set(ids) == {"batch"}
    (line,) = [line for line in messages(caplog, logging.INFO) if "Batch" in line]
    assert "(1 failed, body ran 5 times)" in line
    assert world.states == ["SUCCESS", "FAILURE", "SUCCESS"]


def test_other_arguments_of_the_body_stay(world: World) -> None:
    """An overridden flush may give the body more, or another list with the requests."""
    from celery_batches.pool.trace import trace_batch

    seen: list[Any] = []

    def body(requests: Any, extra: Any, numbers: Any) -> None:
        seen.append(([request.id for request in requests], extra, numbers))
        if "id-2" in seen[-1][0]:
            raise Poison

    task = world.define(body, bisect_on_failure=True)
    requests = world.requests()
    trace_batch(task.name, "b", requests, "size", "w@h", (requests, "more", [1, 2, 3]))
    assert [ids for ids, *_ in seen][1:] == [["id-0"], ["id-1", "id-2"], ["id-1"], ["id-2"]]
    assert {(extra, tuple(numbers)) for _, extra, numbers in seen} == {("more", (1, 2, 3))}
