"""One batch on its way through the pool: what each member is told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery.worker import state as worker_state

from celery_batches.worker.body_args import BodyArguments
from kit.jobs import OK, RecordedJob, boom
from kit.messages import IDS
from kit.pool import Pool


def test_the_pool_gets_one_task(app: Any) -> None:
    """A batch is one task to the pool, under an id of its own, with all members in order."""
    world = RecordedJob(app)
    options = world.send()
    name, batch_id, members, trigger, hostname, body_args, flush, record = options["args"]
    assert (name, batch_id, trigger, hostname) == ("unit.click", world.job.id, "size", "w@h")
    assert [member.id for member in members] == IDS
    assert (body_args, flush) == (None, None)
    assert record is None or isinstance(record, int)
    assert options["correlation_id"] == world.job.id
    assert world.job.id not in IDS


def test_every_callback_reaches_every_member(app: Any) -> None:
    """Accepted and succeeded: each member hears both, with its own report, and is acknowledged."""
    world = RecordedJob(app)
    options = world.send()
    options["accept_callback"](123, 0.0)
    options["callback"]((False, [(False, "a"), (False, "b"), (False, "c")], 0.5))
    assert world.ids_told("on_accepted") == IDS
    assert [told[2] for told in world.told if told[0] == "on_success"] == [
        *((False, "a", 0.5), (False, "b", 0.5), (False, "c", 0.5))
    ]
    assert world.said == [["ack"]] * 3
    assert {request.worker_pid for request in world.requests} == {123}
    assert worker_state.total_count == {"unit.click": 3}


def test_acks_late_waits_for_the_result(app: Any) -> None:
    """With acks_late no member is acknowledged before the batch has ended."""
    world = RecordedJob(app, acks_late=True)
    options = world.send()
    options["accept_callback"](123, 0.0)
    assert world.said == [[]] * 3
    assert not world.released
    options["callback"](OK)
    assert world.said == [["ack"]] * 3
    assert world.released
    assert world.finished


def test_a_failed_member_does_not_fail_its_neighbours(app: Any) -> None:
    """A report of failure is told to the one that it is about."""
    world = RecordedJob(app, acks_late=True)
    options = world.send()
    options["accept_callback"](1, 0.0)
    options["callback"]((False, [(False, "a"), (True, boom()), (False, "c")], 0.5))
    assert world.ids_told("on_failure") == ["id-1"]
    assert world.ids_told("on_success") == IDS
    assert world.released
    assert world.finished


def test_a_failure_is_told_as_the_exception_that_it_is(app: Any) -> None:
    """Pools without processes hand over billiard's wrapper of it, which events must not show."""
    world = RecordedJob(app)
    einfo = boom()
    assert type(einfo.exception) is not KeyError
    world.send()["callback"]((False, [(True, einfo), (False, "b"), (True, einfo)], 0.5))
    assert [type(told[2].exception) for told in world.told if told[0] == "on_failure"] == [
        *(KeyError, KeyError)
    ]


def test_a_lost_batch_is_lost_for_every_member(app: Any) -> None:
    """What the pool could not run at all fails for each member."""
    world = RecordedJob(app)
    world.send()["error_callback"](boom())
    assert world.ids_told("on_failure") == IDS
    assert world.released
    assert world.finished


@pytest.mark.parametrize("callback", ["accept", "success", "failure", "timeout"])
def test_a_broken_callback_does_not_lose_the_neighbours(
    app: Any, caplog: pytest.LogCaptureFixture, callback: str
) -> None:
    """When a callback raises for one member, the others are told all the same, and it is logged."""
    world = RecordedJob(app)
    options = world.send()
    world.broken = {"id-0", "id-1"}
    call, name = {
        "accept": (lambda: options["accept_callback"](1, 0.0), "on_accepted"),
        "success": (lambda: options["callback"](OK), "on_success"),
        "failure": (lambda: options["error_callback"](boom()), "on_failure"),
        "timeout": (lambda: options["timeout_callback"](False, 5), "on_timeout"),
    }[callback]
    call()
    assert world.ids_told(name) == IDS
    assert sum("broken callback" in record.getMessage() for record in caplog.records) == 2
    assert world.released
    assert world.finished == (callback != "accept")


@pytest.mark.parametrize("acks_late", [True, False])
def test_room_is_released_exactly_once(app: Any, acks_late: bool) -> None:
    """However many callbacks the pool makes, what the batch held is given back once."""
    world = RecordedJob(app, acks_late=acks_late)
    options = world.send()
    options["accept_callback"](1, 0.0)
    assert world.released == (not acks_late)
    assert not world.finished
    options["timeout_callback"](True, 5)
    assert not world.finished
    options["timeout_callback"](False, 5)
    options["error_callback"](boom())
    options["callback"](OK)
    assert world.released
    assert world.finished


def test_terminate_reaches_the_pool_through_any_member(app: Any) -> None:
    """What `Request.terminate` tells the pool's handle of an ordinary task, the batch's hears."""
    world = RecordedJob(app)
    world.send()
    for request in world.requests:
        request.terminate(Pool(), "TERM")
    assert world.pool.handle
    assert world.pool.handle.told == [15, 15, 15]


def test_a_pool_without_handles(app: Any) -> None:
    """A pool that returns nothing, as solo does, is fine."""
    world = RecordedJob(app)
    world.pool = Pool(handle=False)
    world.send()
    world.requests[0].terminate(Pool(), "TERM")


def test_body_args_cross_to_the_pool(app: Any) -> None:
    """Arguments that apply_buffer was given for the body reach it."""
    world = RecordedJob(app)
    world.job.body_args = BodyArguments("unit.click", ("x",), world.requests)
    assert world.send()["args"][5] == ("x",)


def test_errors_are_logged_with_the_batch(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A log line about a member's callback names the task and the batch."""
    world = RecordedJob(app)
    options = world.send()
    world.broken = {"id-2"}
    with caplog.at_level(logging.ERROR):
        options["callback"](OK)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "unit.click" in record.getMessage()
    assert world.job.id in record.getMessage()
    assert record.exc_info
