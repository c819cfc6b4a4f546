"""Retries: of one request, and of all requests that have no outcome."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import states
from celery.exceptions import (
    MaxRetriesExceededError,
    Reject,
    Retry,
)

from kit.log import messages
from kit.tracing import World, exceptions


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
    failed = [told["task_id"] for name, _, told in signal_log if name == "task_failure"]
    assert failed == ["id-0", "id-2"]
    lines = messages(caplog, logging.ERROR)
    assert [line.split()[1] for line in lines] == ["unit.click[id-0]", "unit.click[id-2]"]
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


def test_ignore_result_of_a_retry(sending: World) -> None:
    """No state is stored where no result is wanted."""
    sending.define(lambda requests: requests[0].retry())
    sending.run(None, ignore_result=True)
    assert len(sending.sent) == 1
    assert sending.states[0] == "PENDING"


def test_a_retry_whose_state_cannot_be_stored_is_a_retry(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent again. If it failed as well, its caller would hear of both."""
    world = World(app)
    app.conf.task_always_eager = False

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(app.backend, "mark_as_retry", away)
    reports = world.run(
        lambda requests: requests[0].retry(countdown=5), {"errbacks": [world.errback.s()]}
    )
    assert isinstance(exceptions(reports)[0], Retry)
    assert [sent["id"] for _, sent in world.sent] == ["id-0"]
    assert world.called == []
    assert world.states[0] == "PENDING"
    assert "Cannot store the retry of <SimpleRequest: unit.click[id-0]" in caplog.text
