"""Running a batch task here and now."""

from __future__ import annotations

from typing import Any

import pytest
from celery import _state, chain, current_task, states
from celery.exceptions import Ignore, Reject
from celery.result import EagerResult

from celery_batches import Batches, SimpleRequest

Log = list[tuple[str, Any, dict[str, Any]]]


class Logged(Batches):
    """Notes what its handlers are told."""

    abstract = True

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def before_start(self, *args: Any) -> None:
        self.told.append(("before_start", *args))

    def on_success(self, *args: Any) -> None:
        self.told.append(("on_success", *args))

    def on_failure(self, *args: Any) -> None:
        self.told.append(("on_failure", *args))

    def after_return(self, *args: Any) -> None:
        self.told.append(("after_return", *args))


class Interrupted(BaseException):
    """Not an Exception, as KeyboardInterrupt."""


def make(app: Any, body: Any, **options: Any) -> Any:
    options.setdefault("base", Batches)
    return app.task(**{"name": "unit.click", **options})(body)


def fail(requests: Any) -> None:
    raise KeyError("boom")


def succeed(requests: Any) -> str:
    return "value"


@pytest.fixture
def seen(app: Any) -> list[Any]:
    return []


@pytest.fixture
def click(app: Any, seen: list[Any]) -> Any:
    def body(requests: Any) -> int:
        seen.extend(requests)
        return len(requests)

    return make(app, body)


def test_apply_is_a_batch_of_one(click: Any, seen: list[Any]) -> None:
    """apply() runs the body here, with a list that holds the one call, and returns its result."""
    result = click.apply(("a",), {"b": 2}, task_id="own-id")
    assert isinstance(result, EagerResult)
    (request,) = seen
    assert isinstance(request, SimpleRequest)
    assert (request.id, request.name) == ("own-id", "unit.click")
    assert (list(request.args), request.kwargs) == (["a"], {"b": 2})
    assert (result.id, result.state, result.result, result.get()) == (
        *("own-id", states.SUCCESS, 1, 1),
    )
    assert result.traceback is None


def test_apply_without_anything(click: Any, seen: list[Any]) -> None:
    """apply() needs no arguments; each call has an id of its own."""
    assert click.apply().get() == 1
    assert click.apply().get() == 1
    assert seen[0].id != seen[1].id
    assert (list(seen[0].args), seen[0].kwargs) == ([], {})


def test_a_direct_call_takes_a_list(click: Any, seen: list[Any]) -> None:
    """task(...) called directly is the body called with a list, as a plain function."""
    request = SimpleRequest("1", "unit.click", ["a"], {}, {}, "h")
    assert click([request]) == 1
    assert seen == [request]


def test_a_direct_call_raises(app: Any) -> None:
    """An exception in a direct call is the caller's."""
    with pytest.raises(KeyError, match="boom"):
        make(app, fail)([])


@pytest.mark.parametrize("how", ["delay", "apply_async", "countdown", "eta"])
def test_always_eager(app: Any, click: Any, seen: list[Any], how: str) -> None:
    """With task_always_eager each way of calling runs the body at once, countdown or not."""
    from datetime import datetime, timezone

    app.conf.task_always_eager = True
    if how == "delay":
        result = click.delay("a", b=2)
    else:
        options: dict[str, Any] = {
            "apply_async": {},
            "countdown": {"countdown": 3600},
            "eta": {"eta": datetime(2999, 1, 1, tzinfo=timezone.utc)},
        }[how]
        result = click.apply_async(("a",), {"b": 2}, **options)
    assert result.get() == 1
    (request,) = seen
    assert request.id == result.id
    assert (list(request.args), dict(request.kwargs)) == (["a"], {"b": 2})


def test_a_failure_is_in_the_result(app: Any) -> None:
    """Without throw, what the body raises is the result: state, exception and traceback."""
    result = make(app, fail).apply()
    assert result.state == states.FAILURE
    assert isinstance(result.result, KeyError)
    assert "boom" in result.traceback
    assert "in fail" in result.traceback
    with pytest.raises(KeyError, match="boom"):
        result.get()


def test_throw(app: Any) -> None:
    """With throw=True the body's exception comes out of apply(), whatever the configuration."""
    task = make(app, fail)
    with pytest.raises(KeyError, match="boom"):
        task.apply(throw=True)
    app.conf.task_eager_propagates = True
    assert task.apply(throw=False).state == states.FAILURE


def test_task_eager_propagates(app: Any) -> None:
    """With task_eager_propagates the body's exception comes out of delay() and apply()."""
    app.conf.task_eager_propagates = True
    app.conf.task_always_eager = True
    task = make(app, fail)
    with pytest.raises(KeyError, match="boom"):
        task.delay()
    with pytest.raises(KeyError, match="boom"):
        task.apply()


def test_link_error(app: Any) -> None:
    """The error callback of a call that fails eagerly is called, once."""
    called: list[Any] = []

    @app.task(name="unit.errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        called.append((request.id, exc))

    make(app, fail).apply(task_id="own-id", link_error=errback.s())
    ((request_id, exc),) = called
    assert request_id == "own-id"
    assert isinstance(exc, KeyError)


def test_handlers_of_a_success(app: Any) -> None:
    """Handlers are told of the call by its own id and its original arguments."""
    task = make(app, succeed, base=Logged)
    task.apply(("a",), {"b": 2}, task_id="own-id")
    assert task.told == [
        ("before_start", "own-id", ("a",), {"b": 2}),
        ("on_success", "value", "own-id", ("a",), {"b": 2}),
        ("after_return", states.SUCCESS, "value", "own-id", ("a",), {"b": 2}, None),
    ]


def test_handlers_of_a_failure(app: Any) -> None:
    """Handlers of a failed call get the exception and, as documented, its ExceptionInfo."""
    task = make(app, fail, base=Logged)
    task.apply(("a",), {"b": 2}, task_id="own-id")
    before, failure, after = task.told
    assert before == ("before_start", "own-id", ("a",), {"b": 2})
    name, exc, *call, einfo = failure
    assert (name, type(exc), call) == ("on_failure", KeyError, ["own-id", ("a",), {"b": 2}])
    assert "boom" in einfo.traceback
    assert after[:6] == ("after_return", states.FAILURE, exc, "own-id", ("a",), {"b": 2})


@pytest.mark.parametrize("fails", [False, True])
def test_signals_once(app: Any, signal_log: Log, fails: bool) -> None:
    """Signals that bracket execution are sent once each, under the id of the call."""
    task = make(app, fail if fails else succeed)
    task.apply(task_id="own-id")
    end = "task_failure" if fails else "task_success"
    assert [name for name, *_ in signal_log] == ["task_prerun", end, "task_postrun"]
    assert {sender for _, sender, _ in signal_log} == {task}
    assert {k["task_id"] for _, _, k in signal_log if "task_id" in k} == {"own-id"}
    state = states.FAILURE if fails else states.SUCCESS
    assert signal_log[-1][2]["state"] == state


def test_bind(app: Any) -> None:
    """With bind=True the body gets the task first, and its request is that of the call."""
    ids: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        ids.extend([self.name, self.request.id, self.request.is_eager, requests[0].id])
        ids.append(self.request.called_directly)

    task = make(app, body, bind=True)
    task.apply(task_id="own-id")
    assert ids == ["unit.click", "own-id", True, "own-id", False]
    assert task.request.id is None


def test_custom_call(app: Any) -> None:
    """A task's own __call__ is what runs the body."""
    ran: list[str] = []

    class Own(Batches):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            ran.append("call")
            return super().__call__(*args, **kwargs)

    def body(requests: Any) -> int:
        ran.append("body")
        return len(requests)

    assert make(app, body, base=Own).apply().get() == 1
    assert ran == ["call", "body"]


def test_context_is_visible(click: Any, seen: list[Any]) -> None:
    """Headers, retries and the rest of the call's options are on its request."""
    click.apply(
        task_id="own-id",
        headers={"tenant": "t1"},
        retries=2,
        ignore_result=True,
        time_limit=20,
        soft_time_limit=10,
        root_id=None,
        group_id="g",
        routing_key="rk",
        stamped_headers=["s"],
        s="v",
    )
    (request,) = seen
    assert request.headers == {"tenant": "t1"}
    assert request.retries == 2
    assert request.ignore_result is True
    assert (request.time_limit, request.soft_time_limit) == (20, 10)
    assert request.group == "g"
    assert request.is_eager is True
    assert request.delivery_info["is_eager"] is True
    assert request.delivery_info["routing_key"] == "rk"
    assert request.stamps == {"s": ["v"]}


def test_parent_and_root(app: Any, click: Any, seen: list[Any]) -> None:
    """A call made from inside a task knows its parent and its root."""

    @app.task(name="unit.parent")
    def parent() -> None:
        click.apply(task_id="child")

    parent.apply(task_id="parent-id")
    (request,) = seen
    assert (request.parent_id, request.root_id) == ("parent-id", "parent-id")
    click.apply(task_id="alone")
    assert (seen[1].parent_id, seen[1].root_id) == (None, "alone")


def test_current_task(app: Any) -> None:
    """While the body runs, current_task is the task, and afterwards there is none."""
    names: list[str] = []

    def body(requests: Any) -> None:
        names.append(current_task.name)

    make(app, body).apply()
    assert names == ["unit.click"]
    assert not current_task


@pytest.mark.parametrize("exc", [None, KeyError("boom"), Interrupted()], ids=repr)
@pytest.mark.parametrize("throw", [False, True])
def test_stacks_are_clean(app: Any, exc: Any, throw: bool) -> None:
    """However the body ends, neither the task stack nor the request stack keeps anything."""

    def body(requests: Any) -> None:
        if exc is not None:
            raise exc

    task = make(app, body)
    if isinstance(exc, Interrupted) or (exc is not None and throw):
        with pytest.raises(type(exc)):
            task.apply(throw=throw)
    else:
        task.apply(throw=throw)
    assert _state._task_stack.top is None
    assert task.request_stack.top is None


def test_results_are_not_stored(app: Any, click: Any) -> None:
    """An eager failure is not written to the backend, unless task_store_eager_result says so."""
    task = make(app, fail, name="unit.fail")
    task.apply(task_id="unstored")
    assert app.AsyncResult("unstored").state == states.PENDING


def test_results_are_stored_on_request(app: Any) -> None:
    """With task_store_eager_result a failure can be read by everybody."""
    app.conf.task_store_eager_result = True
    make(app, fail).apply(task_id="stored")
    assert app.AsyncResult("stored").state == states.FAILURE


@pytest.mark.parametrize("value", [41, None, 0])
def test_what_the_body_marks_a_call_with_is_its_eager_result(app, value):
    """Eagerly as with a worker, a caller gets what the body marked the call with."""

    @app.task(base=Batches)
    def answer(requests):
        app.backend.mark_as_done(requests[0].id, value, request=requests[0])
        return "for signals only"

    result = answer.apply()
    assert (result.state, result.get()) == ("SUCCESS", value)


def test_a_call_that_the_body_marks_as_failed_has_failed_eagerly(app):
    """Eagerly as with a worker, a caller gets the exception that the body marked the call with."""

    @app.task(base=Batches)
    def answer(requests):
        app.backend.mark_as_failure(requests[0].id, KeyError("no"), request=requests[0])

    result = answer.apply(throw=False)
    assert result.state == "FAILURE"
    assert "KeyError" in result.traceback
    with pytest.raises(KeyError):
        result.get()


@pytest.mark.parametrize("how", ["request", "self", "auto"])
@pytest.mark.parametrize("throw", [False, True])
def test_a_retry_is_run_eagerly_too(app: Any, how: str, throw: bool) -> None:
    """A call that is retried is run again at once, and the result is that of the last run."""
    runs: list[int] = []
    options = {"autoretry_for": (KeyError,)} if how == "auto" else {}

    @app.task(base=Batches, name="unit.again", bind=True, **options)
    def again(self: Any, requests: Any) -> None:
        (request,) = requests
        runs.append(request.retries)
        if request.retries == 2:
            request.mark_as_done("at last")
        elif how == "request":
            request.retry()
        elif how == "self":
            raise self.retry()
        else:
            raise KeyError("again")

    result = again.apply((1,), throw=throw)
    assert runs == [0, 1, 2]
    assert (result.state, result.result) == (states.SUCCESS, "at last")


@pytest.mark.parametrize("throw", [False, True])
def test_a_retry_too_many_eagerly(app: Any, throw: bool) -> None:
    """A call that has used up its retries fails, or raises if that is wanted."""

    @app.task(base=Batches, name="unit.never", max_retries=1)
    def never(requests: Any) -> None:
        requests[0].retry(exc=ValueError("never"))

    if throw:
        with pytest.raises(ValueError, match="never"):
            never.apply(throw=True)
    else:
        result = never.apply()
        assert (result.state, str(result.result)) == (states.FAILURE, "never")


def test_a_call_that_fails_by_itself_can_raise(app: Any) -> None:
    """With throw=True, what a request is marked with as its failure is raised."""

    @app.task(base=Batches, name="unit.marked")
    def marked(requests: Any) -> None:
        requests[0].mark_as_failure(ValueError("marked"))

    with pytest.raises(ValueError, match="marked"):
        marked.apply(throw=True)
    assert marked.apply().state == states.FAILURE


@pytest.mark.parametrize(
    ("exc", "state"), [(Reject("no"), states.REJECTED), (Ignore(), states.IGNORED)], ids=repr
)
def test_predicates_eagerly(app: Any, exc: Exception, state: str) -> None:
    """Reject and Ignore are the state of an eager result."""

    @app.task(base=Batches, name="unit.predicate")
    def predicate(requests: Any) -> None:
        raise exc

    assert predicate.apply().state == state


def test_link_and_chain_eagerly(app: Any) -> None:
    """Callbacks and the next task of a chain are run with the result."""
    app.conf.task_always_eager = True
    got: list[Any] = []

    @app.task(name="unit.got")
    def callback(value: Any) -> Any:
        got.append(value)
        return value

    @app.task(base=Batches, name="unit.double")
    def double(requests: Any) -> None:
        for request in requests:
            request.mark_as_done(request.args[0] * 2)

    double.apply((1,), link=callback.s())
    chain(double.s(2), callback.s(), double.s())()
    assert got == [2, 4]
