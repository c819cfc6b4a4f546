"""How requests end: outcomes of their own, and what follows from each."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from celery import group, signals, states
from celery.exceptions import (
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
)
from celery.worker import state as worker_state
from unit.support import make_request, protocol_2

from celery_batches import Batches, SimpleRequest
from celery_batches.pool.trace import BatchTrace, trace_batch

IDS = ["id-0", "id-1", "id-2"]
WAYS = ["method", "idiom"]


@pytest.fixture(autouse=True)
def _debug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, logger="celery_batches"):
        yield


class World:
    """A batch task, what its callbacks were called with, and what it has sent."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app
        self.options = {"name": "unit.click", "base": Batches, **options}
        self.called: list[Any] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.task: Any = None

        @app.task(name="unit.callback")
        def callback(value: Any) -> None:
            self.called.append(("callback", value))

        @app.task(name="unit.following")
        def following(value: Any) -> None:
            self.called.append(("following", value))

        @app.task(name="unit.errback")
        def errback(request: Any, exc: Any, traceback: Any) -> None:
            self.called.append(("errback", request.id))

        self.callback, self.following, self.errback = callback, following, errback
        app.conf.task_always_eager = True
        app.conf.task_store_eager_result = True
        signals.before_task_publish.connect(self._on_publish, weak=False)

    def _on_publish(self, sender: Any, body: Any, headers: Any, properties: Any, **_: Any) -> None:
        self.sent.append(
            (sender, {**headers, "body": body, "priority": properties.get("priority")})
        )

    def define(self, body: Any, **options: Any) -> Any:
        body = body if "<" not in body.__name__ else _named(body)
        self.task = self.app.task(**{**self.options, **options})(body)
        return self.task

    def requests(self, *headers: dict[str, Any], **common: Any) -> list[SimpleRequest]:
        each = [*headers, *([{}] * (3 - len(headers)))]
        made = []
        for id, own in zip(IDS, each, strict=False):
            message = protocol_2(self.app, id, self.task.name, [id], **{**common, **own})
            made.append(SimpleRequest.from_request(make_request(self.app, self.task, message)))
        return made

    def run(self, body: Any, *headers: dict[str, Any], **common: Any) -> list[tuple[bool, Any]]:
        if self.task is None:
            self.define(body)
        requests = self.requests(*headers, **common)
        broken, reports, _ = trace_batch(self.task.name, "batch", requests, "size", "w@h")
        assert broken is False
        pickle.dumps(reports)
        return reports

    @property
    def states(self) -> list[str]:
        return [self.app.AsyncResult(id).state for id in IDS]


def _named(function: Any) -> Any:
    """Celery writes the name of a body into code."""
    function.__name__ = "body"
    return function


@pytest.fixture
def world(app: Any) -> Iterator[World]:
    world = World(app)
    yield world
    signals.before_task_publish.disconnect(world._on_publish)


@pytest.fixture
def sending(app: Any, world: World) -> World:
    """The same, with a broker."""
    app.conf.task_always_eager = False
    return world


def exceptions(reports: list[tuple[bool, Any]]) -> list[Any]:
    """What each report is about, as `Request.on_success` looks at it."""
    found = []
    for failed, report in reports:
        exc = report.exception if failed else None
        found.append(getattr(exc, "exc", exc) if not isinstance(exc, Retry) else exc)
    return found


def mark_done(world: World, way: str, request: SimpleRequest, value: Any) -> None:
    if way == "method":
        request.mark_as_done(value)
    else:
        world.app.backend.mark_as_done(request.id, value, request=request)


def mark_failed(world: World, way: str, request: SimpleRequest, exc: Exception) -> None:
    if way == "method":
        request.mark_as_failure(exc)
    else:
        world.app.backend.mark_as_failure(request.id, exc, request=request)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == level and r.name.startswith("celery_batches")
    ]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_marked_requests_end_as_marked(world: World, way: str, raises: bool) -> None:
    """What the body says of a request holds, whether the body raises afterwards or not."""

    def body(requests: Any) -> None:
        mark_done(world, way, requests[0], 42)
        mark_failed(world, way, requests[1], ValueError("bad"))
        if raises:
            raise KeyError("boom")

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, raises]
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE" if raises else "PENDING"]
    assert world.app.AsyncResult("id-0").result == 42
    assert isinstance(world.app.AsyncResult("id-1").result, ValueError)


def test_methods_take_effect_when_the_body_ends(world: World) -> None:
    """While the body runs, nothing is written for what its requests' methods say."""
    seen: list[str] = []

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        seen.append(world.app.AsyncResult("id-0").state)

    world.run(body)
    assert seen == ["PENDING"]
    assert world.states[0] == "SUCCESS"


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_the_first_outcome_wins(
    world: World, first: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever way it was set, a second outcome of a request has no effect."""

    def body(requests: Any) -> None:
        mark_done(world, first, requests[0], "first")
        mark_failed(world, second, requests[0], ValueError("second"))
        mark_failed(world, first, requests[1], ValueError("first"))
        mark_done(world, second, requests[1], "second")

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, False]
    assert world.states == ["SUCCESS", "FAILURE", "PENDING"]
    assert len(messages(caplog, logging.WARNING)) == (2 if second == "idiom" else 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_done_request_sets_off_what_waits_for_it(world: World, way: str) -> None:
    """Link, chain and group callbacks go on with the result, once, and are its children."""

    def body(requests: Any) -> None:
        mark_done(world, way, requests[0], 7)
        mark_failed(world, way, requests[1], ValueError())

    callbacks = [world.callback.s(), group(world.callback.s(), world.callback.si("immutable"))]
    waits = {
        "callbacks": callbacks,
        "chain": [world.following.s().set(task_id="following")],
        "errbacks": [world.errback.s()],
    }
    world.run(body, waits, waits)
    assert sorted(world.called, key=str) == [
        ("callback", "immutable"),
        ("callback", 7),
        ("callback", 7),
        ("errback", "id-1"),
        ("following", 7),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_callbacks_are_children_of_their_request(sending: World, way: str) -> None:
    """The result of a request knows the tasks that it has set off, as for a task."""

    def body(requests: Any) -> None:
        mark_done(sending, way, requests[0], 7)

    sending.run(body, {"callbacks": [sending.callback.s()], "chain": [sending.following.s()]})
    meta = sending.app.backend.get_task_meta("id-0")
    assert len(meta["children"]) == 2


def test_several_callbacks(world: World) -> None:
    """Several callbacks are all called, by way of one group, as Celery does."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)

    world.run(body, {"callbacks": [world.callback.s(), world.callback.si(2)]})
    assert sorted(world.called, key=str) == [("callback", 1), ("callback", 2)]


@pytest.mark.parametrize("inherit", [True, False])
def test_what_a_callback_inherits(sending: World, inherit: bool) -> None:
    """A callback gets its parent, its root and, if set so, the priority of its request."""
    world = sending
    world.app.conf.task_inherit_parent_priority = inherit

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)

    world.run(body, {"callbacks": [world.callback.s()], "root_id": "root", "priority": 7})
    ((name, sent),) = world.sent
    assert (name, sent["parent_id"], sent["root_id"]) == ("unit.callback", "id-0", "root")
    assert sent["priority"] == (7 if inherit else None)


def test_unmarked_requests_set_off_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What waits for an unmarked request does not go on, and the log says so once."""
    world.run(lambda requests: "value", {"callbacks": [world.callback.s()]}, {"chain": []})
    assert world.called == []
    (warning,) = messages(caplog, logging.WARNING)
    assert "1 of its requests" in warning
    assert "id-0" in warning
    assert "request.mark_as_done(result)" in warning


class Unserialisable:
    def __reduce__(self) -> Any:
        raise TypeError("no pickle for me")


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("way", WAYS)
def test_a_result_that_cannot_be_stored_fails_its_request_alone(
    world: World, way: str, serializer: str
) -> None:
    """The neighbours of a request whose result cannot be serialised are untouched."""
    world.app.conf.result_serializer = serializer
    world.app.conf.accept_content = ["json", "pickle"]

    def body(requests: Any) -> None:
        mark_done(world, way, requests[0], Unserialisable())
        mark_done(world, way, requests[1], "fine")

    reports = world.run(body, {"errbacks": [world.errback.s()]})
    assert [failed for failed, _ in reports] == [True, False, False]
    assert world.states == ["FAILURE", "SUCCESS", "PENDING"]
    assert world.called == [("errback", "id-0")]


@pytest.mark.parametrize("way", WAYS)
def test_an_errback_that_cannot_be_called_changes_nothing(world: World, way: str) -> None:
    """The request has failed with its own exception, once, and its neighbours go on."""

    def body(requests: Any) -> None:
        mark_failed(world, way, requests[0], ValueError("own"))
        mark_done(world, way, requests[1], 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.app.backend), "_call_task_errbacks", _broken)
        reports = world.run(body, {"errbacks": [world.errback.s()]})
    assert world.states == ["FAILURE", "SUCCESS", "PENDING"]
    assert str(world.app.AsyncResult("id-0").result) == "own"
    assert [failed for failed, _ in reports] == [True, False, False]


def _broken(*args: Any, **kwargs: Any) -> None:
    raise TypeError("no such argument")


def test_a_backend_that_is_away_is_the_bodys_concern(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If neither a result nor a failure can be stored, the body hears of it."""

    def away(*args: Any, **kwargs: Any) -> None:
        raise OSError("away")

    heard: list[str] = []

    def body(requests: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(world.app.backend, "store_result", away)
            with pytest.raises(OSError, match="away") as caught:
                mark_done(world, "idiom", requests[0], 1)
            heard.append(str(caught.value))
        mark_done(world, "idiom", requests[0], 2)

    world.run(body)
    assert heard == ["away"]
    assert world.app.AsyncResult("id-0").result == 2


def test_marking_from_another_thread(world: World) -> None:
    """The methods of a request may be called by threads of the body."""

    def body(requests: Any) -> None:
        threads = [Thread(target=r.mark_as_done, args=(r.id,)) for r in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    world.run(body)
    assert [world.app.AsyncResult(id).result for id in IDS] == IDS


def test_marking_when_the_batch_is_over(world: World) -> None:
    """A request of a batch that is over says so, instead of losing what it is told."""
    kept: list[SimpleRequest] = []
    world.run(lambda requests: kept.extend(requests))
    for mark in (
        kept[0].mark_as_done,
        lambda: kept[0].mark_as_failure(ValueError()),
        kept[0].retry,
        kept[0].reject,
    ):
        with pytest.raises(RuntimeError, match=r"id-0.*its batch is over"):
            mark()


@pytest.mark.parametrize("exc", ["text", ValueError, SystemExit(1), None])
def test_mark_as_failure_takes_an_exception(world: World, exc: Any) -> None:
    """What is no exception is refused there and then."""
    heard: list[Any] = []

    def body(requests: Any) -> None:
        with pytest.raises(TypeError, match=r"id-0.*takes an exception"):
            requests[0].mark_as_failure(exc)
        heard.append(1)

    world.run(body)
    assert heard


@pytest.mark.parametrize(
    ("options", "message"),
    [({"exc": "why"}, "must be an exception"), ({"countdown": "soon"}, "in seconds")],
)
def test_retry_checks_its_arguments(options: Any, message: str) -> None:
    """A retry that makes no sense is refused there and then."""
    request = SimpleRequest("id", "name", (), {}, {}, "w@h")
    with pytest.raises(TypeError, match=message):
        request.retry(**options)


@pytest.mark.parametrize("exc", [MemoryError("much"), SystemExit(3)], ids=repr)
def test_failures_that_would_end_the_worker(world: World, exc: Any) -> None:
    """The main process never hears of an exception that Celery would end it for."""

    def body(requests: Any) -> None:
        world.app.backend.mark_as_failure(requests[0].id, exc, request=requests[0])
        if isinstance(exc, MemoryError):
            raise exc

    world.app.conf.result_serializer = "pickle"
    world.app.conf.accept_content = ["json", "pickle"]
    reports = world.run(body)
    assert reports[0][0] is True
    assert type(exceptions(reports)[0]) is RuntimeError
    assert repr(exc) in str(exceptions(reports)[0])


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("odd one")
        self.cannot = lambda: None


def test_an_unpicklable_exception_of_one_request(world: World) -> None:
    """It fails with what can be told of it, and its neighbours succeed."""

    def body(requests: Any) -> None:
        requests[1].mark_as_failure(Unpicklable())
        requests[2].mark_as_done(3)

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, False]
    assert "odd one" in str(world.app.AsyncResult("id-1").result)


def test_the_traceback_of_a_failure_is_its_own(world: World) -> None:
    """An exception that the body has caught keeps the traceback that it has."""

    def deep() -> None:
        raise ValueError("deep")

    def body(requests: Any) -> None:
        try:
            deep()
        except ValueError as exc:
            requests[0].mark_as_failure(exc)
        requests[1].mark_as_failure(ValueError("never raised"))

    world.run(body)
    assert "in deep" in world.app.AsyncResult("id-0").traceback
    assert "never raised" in world.app.AsyncResult("id-1").traceback


def test_many_failures_with_one_exception_share_its_report(world: World) -> None:
    """What the main process is told is pickled once, not once for each request."""

    def body(requests: Any) -> None:
        exc = ValueError("the same")
        for request in requests:
            request.mark_as_failure(exc)

    reports = world.run(body)
    assert len({id(report) for _, report in reports}) == 1


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(Ignore(), Ignore), (Reject("no", requeue=False), Reject)],
    ids=["ignore", "reject"],
)
def test_predicates_spare_marked_requests(world: World, raised: Exception, kind: Any) -> None:
    """Ignore and Reject are for the requests that have no outcome yet."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise raised

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, True]
    assert all(isinstance(exc, kind) for exc in exceptions(reports)[1:])
    assert world.states == ["SUCCESS", "PENDING", "PENDING"]


@pytest.mark.parametrize("requeue", [True, False])
def test_rejecting_one_request(world: World, requeue: bool) -> None:
    """A rejected request is told to the main process as Celery's Reject."""
    reports = world.run(lambda requests: requests[1].reject(requeue=requeue))
    exc = exceptions(reports)[1]
    assert isinstance(exc, Reject)
    assert exc.requeue is requeue
    assert world.states == ["PENDING"] * 3


def test_the_soft_time_limit_is_a_failure_like_another(world: World) -> None:
    """Requests that were marked before the time was up keep their outcome."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise SoftTimeLimitExceeded

    world.run(body)
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE"]
    assert isinstance(world.app.AsyncResult("id-1").result, SoftTimeLimitExceeded)


def test_an_error_outside_of_the_body_spares_marked_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the batch cannot be brought to its end, requests end as the body has said."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("broken")

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)

    monkeypatch.setattr("celery_batches.pool.trace.decide", broken)
    world.define(body)
    broken_run, reports, _ = trace_batch(world.task.name, "b", world.requests(), "size", "w@h")
    assert broken_run is True
    assert [failed for failed, _ in reports] == [False, True, True]
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE"]


def test_system_exit_leaves_everything_to_the_pool(world: World) -> None:
    """SystemExit passes through, as for a task: the pool says what it means."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise SystemExit(1)

    world.define(body)
    with pytest.raises(SystemExit):
        trace_batch(world.task.name, "batch", world.requests(), "size", "w@h")
    assert world.states == ["PENDING"] * 3


# Retries.


def test_retrying_one_request(sending: World) -> None:
    """It is sent again with everything it came with, and one more retry."""
    sending.app.conf.task_default_retry_delay = 3

    def body(requests: Any) -> None:
        requests[1].retry(countdown=5, exc=ValueError("later"))
        requests[2].mark_as_done(1)

    chord = sending.callback.s()
    kept = {
        "retries": 1,
        "root_id": "root",
        "parent_id": "parent",
        "group_id": "group",
        "group_index": 4,
        "chord": chord,
        "chain": [sending.following.s()],
        "callbacks": [sending.callback.s()],
        "errbacks": [sending.errback.s()],
        "more_headers": {"x-tenant": "blue"},
        "shadow": "shady",
        "priority": 6,
    }
    reports = sending.run(body, {}, kept)
    ((name, sent),) = sending.sent
    assert name == "unit.click"
    wanted = {
        "id": "id-1",
        "retries": 2,
        "root_id": "root",
        "parent_id": "parent",
        "group": "group",
        "group_index": 4,
        "x-tenant": "blue",
        "shadow": "shady",
        "priority": 6,
    }
    assert {key: sent[key] for key in wanted} == wanted
    args, _, embed = sent["body"]
    assert list(args) == ["id-1"]
    assert embed["chord"]["task"] == "unit.callback"
    assert [s["task"] for s in embed["chain"]] == ["unit.following"]
    assert [s["task"] for s in embed["callbacks"]] == ["unit.callback"]
    assert [s["task"] for s in embed["errbacks"]] == ["unit.errback"]
    assert sending.states == ["PENDING", "RETRY", "SUCCESS"]
    assert isinstance(exceptions(reports)[1], Retry)
    assert isinstance(exceptions(reports)[1].exc, ValueError)


def test_retrying_with_other_arguments(sending: World) -> None:
    """Arguments that a retry is given take the place of the request's own."""

    def body(requests: Any) -> None:
        requests[0].retry(args=["new"])
        requests[1].retry(kwargs={"a": 1})
        requests[2].retry(args=(), kwargs={}, queue="slow")

    sending.run(body)
    sent = [(list(sent["body"][0]), sent["body"][1]) for _, sent in sending.sent]
    assert sent == [(["new"], {}), (["id-1"], {"a": 1}), ([], {})]


def test_self_retry_spares_marked_requests(sending: World, signal_log: Any) -> None:
    """self.retry() sends again what has no outcome, each with its own count."""

    def body(self: Any, requests: Any) -> None:
        requests[0].mark_as_done(1)
        try:
            raise ValueError("why")
        except ValueError as exc:
            raise self.retry(exc=exc, countdown=9) from exc

    sending.define(body, bind=True)
    reports = sending.run(None, {}, {"retries": 0}, {"retries": 2})
    assert [(sent["id"], sent["retries"]) for _, sent in sending.sent] == [("id-1", 1), ("id-2", 3)]
    assert sending.states == ["SUCCESS", "RETRY", "RETRY"]
    assert [failed for failed, _ in reports] == [False, True, True]
    names = [name for name, *_ in signal_log]
    assert names == ["task_prerun", "task_retry", "task_retry", "task_postrun"]
    retries = [kwargs for name, _, kwargs in signal_log if name == "task_retry"]
    assert [kwargs["request"].id for kwargs in retries] == ["id-1", "id-2"]
    assert isinstance(retries[0]["reason"], Retry)
    assert "why" in retries[0]["einfo"].traceback
    assert signal_log[-1][2]["state"] == states.RETRY


@pytest.mark.parametrize("given", [True, False])
def test_a_retry_too_many_fails_its_request_alone(
    sending: World, signal_log: Any, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    """Over the limit a request fails with why it was retried; the others are retried."""

    def body(self: Any, requests: Any) -> None:
        try:
            raise ValueError("why")
        except ValueError as exc:
            raise self.retry(exc=exc if given else None) from exc

    sending.define(body, bind=True, max_retries=2)
    reports = sending.run(
        None, {"retries": 2, "errbacks": [sending.errback.s()]}, {"retries": 1}, {"retries": 2}
    )
    assert [sent["id"] for _, sent in sending.sent] == ["id-1"]
    assert sending.states == ["FAILURE", "RETRY", "FAILURE"]
    assert sending.called == [("errback", "id-0")]
    result = sending.app.AsyncResult("id-0")
    assert isinstance(result.result, ValueError if given else MaxRetriesExceededError)
    assert [name for name, *_ in signal_log].count("task_failure") == 1
    assert len(messages(caplog, logging.ERROR)) == 1
    if given:
        # The traceback is where it was raised, not where it was raised again for each request.
        assert sending.app.AsyncResult("id-2").traceback == result.traceback
        assert len({id(report) for report in (reports[0][1], reports[2][1])}) == 1


def test_self_retry_without_throw(sending: World) -> None:
    """With throw=False the body goes on, and the requests are retried all the same."""
    went_on: list[Any] = []

    def body(self: Any, requests: Any) -> str:
        went_on.append(self.retry(throw=False, countdown=4))
        requests[0].mark_as_done(1)
        return "value"

    sending.define(body, bind=True)
    sending.run(None)
    assert isinstance(went_on[0], Retry)
    assert went_on[0].when == 4
    assert len(sending.sent) == 3


@pytest.mark.parametrize("options", [{"args": [1]}, {"kwargs": {}}])
def test_self_retry_has_no_arguments_for_the_calls(sending: World, options: Any) -> None:
    """One set of arguments for all requests is refused, and the error says what to do."""

    def body(self: Any, requests: Any) -> None:
        self.retry(**options)

    sending.define(body, bind=True)
    reports = sending.run(None)
    assert all(isinstance(exc, TypeError) for exc in exceptions(reports))
    assert "request.retry(args=...)" in str(exceptions(reports)[0]).replace(
        "args=..., kwargs=...", "args=..."
    )


def test_self_retry_called_directly(world: World) -> None:
    """Outside of a worker it raises what Celery's raises: the exception."""

    def body(self: Any, requests: Any) -> None:
        raise self.retry(exc=ValueError("direct"))

    world.define(body, bind=True)
    with pytest.raises(ValueError, match="direct"):
        world.task([])


def test_retry_raised_by_hand(sending: World) -> None:
    """As in Celery, it marks the state, and nothing is sent."""

    def body(requests: Any) -> None:
        raise Retry("by hand", exc=ValueError("x"))

    sending.run(body)
    assert sending.sent == []
    assert sending.states == ["RETRY"] * 3


def test_the_limit_of_one_retry_is_not_kept(sending: World) -> None:
    """max_retries of a retry is for that retry: the next batch has the task's own limit."""

    def body(requests: Any) -> None:
        requests[0].retry(max_retries=0)
        requests[1].retry(max_retries=7)

    sending.define(body)
    sending.run(None, {"retries": 1}, {"retries": 5})
    assert sending.states[:2] == ["FAILURE", "RETRY"]
    assert not hasattr(sending.task, "override_max_retries")


def test_a_retry_that_cannot_be_sent(sending: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Celery, the message is rejected then: for this request alone."""

    def body(requests: Any) -> None:
        requests[0].retry()
        requests[1].mark_as_done(1)

    sending.define(body)

    def away(*args: Any, **kwargs: Any) -> None:
        raise OSError("broker away")

    monkeypatch.setattr(sending.app, "send_task", away)
    reports = sending.run(None)
    assert isinstance(exceptions(reports)[0], Reject)
    assert [failed for failed, _ in reports] == [True, False, False]


AUTO = {"autoretry_for": (ValueError,), "dont_autoretry_for": (UnicodeError,)}


def countdowns(monkeypatch: pytest.MonkeyPatch, task: Any) -> list[Any]:
    """The countdown of each retry, in order."""
    found: list[Any] = []
    original = task.signature_from_request

    def spy(*args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["countdown"])
        return original(*args, **kwargs)

    monkeypatch.setattr(task, "signature_from_request", spy)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [180, 180, 180]),
        ({"retry_kwargs": {"countdown": 7}}, [7, 7, 7]),
        ({"retry_backoff": True, "retry_jitter": False}, [1, 2, 4]),
        ({"retry_backoff": 5, "retry_jitter": False, "retry_backoff_max": 8}, [5, 8, 8]),
    ],
    ids=["plain", "kwargs", "backoff", "limited"],
)
def test_autoretry(
    sending: World, monkeypatch: pytest.MonkeyPatch, options: Any, expected: Any
) -> None:
    """autoretry_for retries all requests, each after the wait for its own count of retries."""

    def body(requests: Any) -> None:
        raise ValueError("auto")

    sending.define(body, **AUTO, **options)
    found = countdowns(monkeypatch, sending.task)
    sending.run(None, {"retries": 0}, {"retries": 1}, {"retries": 2})
    assert found == expected
    assert [sent["retries"] for _, sent in sending.sent] == [1, 2, 3]


def test_jitter_is_within_the_backoff(sending: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With retry_jitter a wait is random, up to that of the backoff."""

    def body(requests: Any) -> None:
        raise ValueError("auto")

    sending.define(body, **AUTO, retry_backoff=10)
    found = countdowns(monkeypatch, sending.task)
    sending.run(None)
    assert all(0 <= countdown <= 10 for countdown in found)


def test_a_retry_of_the_body_is_not_automatic(
    sending: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the body asks for a retry itself, its countdown counts, whatever the backoff."""

    def body(self: Any, requests: Any) -> None:
        try:
            raise ValueError("manual")
        except ValueError as exc:
            raise self.retry(exc=exc, countdown=33) from exc

    sending.define(body, bind=True, **AUTO, retry_backoff=True)
    found = countdowns(monkeypatch, sending.task)
    sending.run(None)
    assert found == [33, 33, 33]


def test_autoretry_has_limits(sending: World) -> None:
    """retry_kwargs may set max_retries; over it, the exception itself is the failure."""

    def body(requests: Any) -> None:
        raise ValueError("auto")

    sending.define(body, **AUTO, retry_kwargs={"max_retries": 1})
    sending.run(None, {"retries": 1})
    assert sending.states == ["FAILURE", "RETRY", "RETRY"]
    assert isinstance(sending.app.AsyncResult("id-0").result, ValueError)


def test_what_is_not_retried_automatically(sending: World) -> None:
    """dont_autoretry_for and exceptions of other types fail as ever."""

    def body(requests: Any) -> None:
        raise UnicodeError("never")

    sending.define(body, **AUTO)
    sending.run(None)
    assert sending.sent == []
    assert sending.states == ["FAILURE"] * 3


def test_ignore_result_of_a_retry(sending: World) -> None:
    """No state is stored where no result is wanted."""
    sending.define(lambda requests: requests[0].retry())
    sending.run(None, ignore_result=True)
    assert len(sending.sent) == 1
    assert sending.states[0] == "PENDING"


# Handlers, with the request of their own.


def test_handlers_run_as_their_request(sending: World) -> None:
    """In a handler, self.request is the request it is called for."""
    told: list[tuple[str, Any]] = []

    class Loud(Batches):
        abstract = True

        def before_start(self, *args: Any) -> None:
            told.append(("before_start", self.request.id))

        def on_success(self, *args: Any) -> None:
            told.append(("on_success", self.request.id))

        def on_failure(self, *args: Any) -> None:
            told.append(("on_failure", self.request.id))

        def on_retry(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
            told.append(("on_retry", self.request.id))
            assert (task_id, args, type(exc)) == ("id-2", ["id-2"], ValueError)

        def after_return(self, *args: Any) -> None:
            told.append(("after_return", self.request.id))

    def body(requests: Any) -> None:
        requests[1].mark_as_failure(KeyError())
        requests[2].retry(exc=ValueError("x"))

    sending.define(body, base=Loud)
    sending.run(None)
    assert told == [
        *(("before_start", id) for id in IDS),
        *(("on_success", "id-0"), ("after_return", "id-0")),
        *(("on_failure", "id-1"), ("after_return", "id-1")),
        ("on_retry", "id-2"),
    ]


def test_a_broken_before_start_fails_its_request_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not run; the others are."""
    seen: list[list[str]] = []

    class Picky(Batches):
        abstract = True

        def before_start(self, task_id: str, *args: Any) -> None:
            if task_id == "id-1":
                raise ValueError("not this one")

    world.define(lambda requests: seen.append([r.id for r in requests]), base=Picky)
    reports = world.run(None)
    assert seen == [["id-0", "id-2"]]
    assert [failed for failed, _ in reports] == [False, True, False]
    assert isinstance(world.app.AsyncResult("id-1").result, ValueError)
    assert len(messages(caplog, logging.ERROR)) == 1


@pytest.mark.parametrize("header", ["batch", "outcome", "members"])
def test_a_header_may_have_any_name(sending: World, header: str) -> None:
    """A custom header is no concern of the library's, in the body or in a handler."""
    told: list[Any] = []

    class Telling(Batches):
        abstract = True

        def on_retry(self, exc: Any, task_id: str, *args: Any) -> None:
            told.append(self.request.get(header))
            self.update_state(task_id, "TOLD")
            sending.app.backend.mark_as_done("elsewhere", 1)

    sending.define(lambda requests: requests[0].retry(), base=Telling)
    sending.run(None, more_headers={header: "blue"})
    assert told == ["blue"]
    assert sending.states[0] == "TOLD"


# What runs before and beside the body.


@pytest.mark.parametrize("ignored", [False, True])
def test_track_started(world: World, ignored: bool) -> None:
    """While the body runs, each request is STARTED, unless its result is not wanted."""
    seen: list[Any] = []

    def body(requests: Any) -> None:
        seen.extend(world.app.backend.get_task_meta(id) for id in IDS)

    world.define(body, track_started=True)
    world.run(None, ignore_result=ignored)
    assert [meta["status"] for meta in seen] == (["PENDING"] if ignored else ["STARTED"]) * 3
    if not ignored:
        assert seen[0]["result"]["hostname"] == "w@h"
        assert seen[0]["result"]["pid"]


def test_update_state_of_all_and_of_one(world: World) -> None:
    """Without an id it is for each request that has no outcome yet."""
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        requests[0].mark_as_done(1)
        self.update_state(state="PROGRESS", meta={"done": 1})
        self.update_state("id-2", "FURTHER")
        self.update_state("elsewhere", "OTHER")
        seen.extend(world.states)
        seen.append(world.app.AsyncResult("elsewhere").state)

    world.define(body, bind=True)
    world.run(None)
    assert seen == ["PENDING", "PROGRESS", "FURTHER", "OTHER"]
    assert world.app.AsyncResult("id-1").info == {"done": 1}


def dedupe(world: World, body: Any) -> None:
    world.app.conf.worker_deduplicate_successful_tasks = True
    world.define(body, acks_late=True)
    world.app.backend.mark_as_done("id-1", "before")


def test_what_was_done_before_is_not_run_again(world: World) -> None:
    """With worker_deduplicate_successful_tasks the body gets only what is new."""
    seen: list[list[str]] = []
    dedupe(world, lambda requests: seen.append([r.id for r in requests]))
    worker_state.successful_requests.add("id-2")
    try:
        reports = world.run(None, redelivered=True)
    finally:
        worker_state.successful_requests.discard("id-2")
    assert seen == [["id-0"]]
    assert reports == [(False, "None"), (False, None), (False, None)]
    assert world.app.AsyncResult("id-1").result == "before"


def test_nothing_is_run_when_all_was_done_before(world: World, signal_log: Any) -> None:
    """A batch of which nothing is left is no run at all."""
    dedupe(world, lambda requests: pytest.fail("ran"))
    for id in IDS:
        world.app.backend.mark_as_done(id, "before")
    reports = world.run(None, redelivered=True)
    assert reports == [(False, None)] * 3
    assert signal_log == []


@pytest.mark.parametrize("why", ["not redelivered", "early", "off"])
def test_when_nothing_is_deduplicated(world: World, why: str) -> None:
    """It takes the setting, late acknowledgement, and a message that comes again."""
    seen: list[list[str]] = []
    dedupe(world, lambda requests: seen.append([r.id for r in requests]))
    world.task.acks_late = why != "early"
    world.app.conf.worker_deduplicate_successful_tasks = why != "off"
    world.run(None, redelivered=why != "not redelivered")
    assert seen == [IDS]


def test_what_was_lost_after_its_result_is_set_off(world: World) -> None:
    """A request that was done, but whose callbacks were not sent, has them sent now."""
    dedupe(world, lambda requests: None)
    world.run(None, {}, {"callbacks": [world.callback.s()]}, redelivered=True)
    assert world.called == [("callback", "before")]


# Refusals.


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.replace(task.s()),
        lambda task: task.add_to_chord(task.s()),
        lambda task: task.map([1]),
        lambda task: task.starmap([(1,)]),
        lambda task: task.chunks([(1,)], 1),
    ],
    ids=["replace", "add_to_chord", "map", "starmap", "chunks"],
)
def test_what_a_batch_cannot_do(world: World, call: Any) -> None:
    """It says so, with the name of the task."""
    with pytest.raises(NotImplementedError, match=r"unit\.click"):
        call(world.define(lambda requests: None))


# The log.


def test_the_line_of_a_batch_counts_other_endings(
    sending: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that ended in another way than the batch are counted in its line."""

    def body(requests: Any) -> None:
        requests[0].mark_as_failure(ValueError())
        requests[1].retry()

    sending.run(body)
    (line,) = [m for m in messages(caplog, logging.INFO) if m.startswith("Batch")]
    assert line.endswith("(1 failed, 1 retried)")
    debug = messages(caplog, logging.DEBUG)
    assert [line.rsplit(" ", 1)[-1] for line in debug if "had" in line] == [
        *("failed", "retried", "unmarked")
    ]


def test_the_line_of_a_retried_batch(sending: World, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that is retried is one line at INFO."""

    def body(self: Any, requests: Any) -> None:
        raise self.retry(countdown=5)

    sending.define(body, bind=True)
    sending.run(None)
    (line,) = [m for m in messages(caplog, logging.INFO) if m.startswith("Batch")]
    assert "retried in" in line
    assert "Retry in 5s" in line
    assert "(" not in line.split("retried in")[1]


def test_expected_exceptions_are_no_errors(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """`throws` keeps a failure out of the error log, and a failure it is all the same."""

    def body(requests: Any) -> None:
        raise KeyError("expected")

    world.define(body, throws=(KeyError,))
    world.run(None)
    assert messages(caplog, logging.ERROR) == []
    assert any("raised expected" in line for line in messages(caplog, logging.INFO))
    assert world.states == ["FAILURE"] * 3


def test_requests_of_their_own_making(world: World) -> None:
    """Requests that were made by hand can be run, and run again."""
    world.define(lambda requests: requests[0].mark_as_done(len(requests)))
    request = SimpleRequest("id-0", "unit.click", (), {}, None, "w@h")
    for _ in range(2):
        trace = BatchTrace(
            task=world.task,
            requests=[request],
            batch_id="batch",
            trigger="manual",
            hostname="w@h",
        )
        trace.run()
        assert trace.settled[0].kind == "done"
    assert world.app.AsyncResult("id-0").result == 1
