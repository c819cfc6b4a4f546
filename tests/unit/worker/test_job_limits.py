"""Time limits: the tightest counts, and each member hears of it once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery.exceptions import (
    InvalidTaskError,
    TimeLimitExceeded,
)
from celery.worker.request import Request

from kit.jobs import RecordedJob
from kit.messages import IDS
from kit.pool import einfo_of
from kit.requests import worker_request


def test_the_hard_time_limit_is_told_to_every_member(app: Any) -> None:
    """Each member hears of the hard time limit, which ends the batch."""
    world = RecordedJob(app)
    world.send()["timeout_callback"](False, 5)
    assert [told[1:] for told in world.told] == [(id, False, 5) for id in IDS]
    assert world.released
    assert world.finished
    assert [app.AsyncResult(id).state for id in IDS] == ["FAILURE"] * 3


def test_a_soft_time_limit_is_one_line(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The soft time limit is logged once for the batch, which goes on."""
    world = RecordedJob(app)
    world.send()["timeout_callback"](True, 5)
    (record,) = caplog.records
    assert "soft time limit (5s) exceeded" in record.getMessage()
    assert "of 3 requests" in record.getMessage()
    assert not world.released


def test_a_request_class_of_its_own_hears_of_a_soft_time_limit(app: Any) -> None:
    """A custom Request class is told of a soft time limit for each member."""
    told: list[Any] = []

    class Told(Request):
        def on_timeout(self, soft: bool, timeout: float) -> None:
            told.append((self.id, soft, timeout))

    world = RecordedJob(app)
    world.requests[1] = worker_request(app, world.task, world.messages[1], cls=Told)
    world.send()["timeout_callback"](True, 5)
    assert told == [("id-1", True, 5)]


def errbacks_of(app: Any) -> tuple[Any, list[str]]:
    called: list[str] = []

    @app.task(name="unit.errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        called.append(request.id)

    return errback, called


@pytest.mark.parametrize("late", [True, False])
def test_the_hard_time_limit_fails_each_member_once(
    app: Any, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool reports a hard time limit twice; errbacks and chords hear of it once."""
    app.conf.task_always_eager = True
    errback, called = errbacks_of(app)
    world = RecordedJob(app, acks_late=late, headers=[{"errbacks": [errback.s()]}] * 3)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["error_callback"](einfo_of(TimeLimitExceeded(5)))
    options["timeout_callback"](False, 5)
    assert called == IDS
    assert world.released
    assert world.finished
    assert world.said == [["ack"]] * 3
    app.conf.task_always_eager = False
    assert isinstance(app.AsyncResult("id-1").result, TimeLimitExceeded)


LIMITS = [
    ([(None, None)] * 3, {}, (None, None)),
    ([(None, None)] * 3, {"time_limit": 50, "soft_time_limit": 40}, (50, 40)),
    ([(30, 20), (None, 25), (10, None)], {"time_limit": 50, "soft_time_limit": 40}, (10, 20)),
    # Those without a limit of their own have that of the task.
    ([(100, 90)] + [(None, None)] * 2, {"time_limit": 50, "soft_time_limit": 40}, (50, 40)),
    ([(100, 90)] * 3, {"time_limit": 50, "soft_time_limit": 40}, (100, 90)),
    ([(100, 90)] + [(None, None)] * 2, {}, (100, 90)),
]


@pytest.mark.parametrize(("members", "options", "expected"), LIMITS)
def test_the_tightest_time_limit_counts(
    app: Any, members: Any, options: dict[str, Any], expected: Any
) -> None:
    """A batch gets the tightest limit that a member asks for, else that of the task."""
    headers = [{"time_limit": hard, "soft_time_limit": soft} for hard, soft in members]
    sent = RecordedJob(app, headers=headers, **options).send()
    assert (sent["timeout"], sent["soft_timeout"]) == expected


@pytest.mark.parametrize("limit", [["x", None], [None, "x"], 5, [1], [1, 2, 3], {"a": 1}])
def test_a_member_with_senseless_limits_is_refused_alone(
    app: Any, limit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nonsense in one member's headers rejects that one, and the rest of the batch runs."""
    world = RecordedJob(app)
    world.requests[1].time_limits = limit
    options = world.send()
    assert [member.id for member in options["args"][2]] == ["id-0", "id-2"]
    assert world.said[1] == ["reject"]
    options["callback"]((False, [(False, "None")] * 2, 0.1))
    assert world.ids_told("on_success") == ["id-0", "id-2"]
    assert world.released
    assert world.finished
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "unit.click[id-1]" in line
    assert isinstance(app.AsyncResult("id-1").result, InvalidTaskError)


def test_the_limits_of_a_member_that_is_refused_do_not_count(app: Any) -> None:
    """Who does not run in the batch says nothing of how long it may take."""
    world = RecordedJob(app, headers=[{}, {"time_limit": 1}, {}], time_limit=50)
    world.requests[1]._message = None
    sent = world.send()
    assert [member.id for member in sent["args"][2]] == ["id-0", "id-2"]
    assert sent["timeout"] == 50


def test_the_limit_of_the_worker_counts_too(app: Any) -> None:
    """Members without any limit have that of the pool, from the settings."""
    world = RecordedJob(app, headers=[{"time_limit": 100}, {}, {}])
    world.pool.options = {"timeout": 60, "soft_timeout": 55}
    sent = world.send()
    assert (sent["timeout"], sent["soft_timeout"]) == (60, 55)
