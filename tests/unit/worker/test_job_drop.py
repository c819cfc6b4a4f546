"""Members that are revoked, expired or dropped with their connection are not run."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import (
    TaskRevokedError,
)
from celery.worker import state as worker_state

from celery_batches.pool.trace import trace_batch
from kit.jobs import OK, RecordedJob, boom
from kit.messages import IDS
from kit.pool import Pool


@pytest.mark.parametrize("acks_late", [False, True])
def test_a_batch_that_is_dropped_before_it_is_accepted_is_empty(app: Any, acks_late: bool) -> None:
    """A pool without processes comes to it later, runs nothing and tells nobody."""
    world = RecordedJob(app, acks_late=acks_late)
    options = world.send()
    members = options["args"][2]
    for request in world.requests:
        worker_state.task_reserved(request)
    world.drop()
    assert members == []
    assert world.finished
    options["accept_callback"](7, 0.0)
    options["callback"](trace_batch(*options["args"]))
    assert world.told == []
    assert world.said == [[], [], []]
    assert not worker_state.reserved_requests
    assert not worker_state.requests
    assert world.finished


def test_a_batch_that_is_dropped_while_it_is_sent(app: Any) -> None:
    """When another thread loses the connection meanwhile, the pool gets a batch of nobody."""
    world = RecordedJob(app)

    class LosingPool(Pool):
        @property
        def options(self) -> dict[str, Any]:  # type: ignore[override]
            world.drop()
            return {}

        @options.setter
        def options(self, options: Any) -> None:
            """It has none."""

    world.pool = LosingPool()
    options = world.send()
    assert options["args"][2] == []
    assert (options["timeout"], options["soft_timeout"]) == (None, None)
    assert world.finished


@pytest.mark.parametrize("callback", ["callback", "error_callback"])
def test_a_dropped_batch_that_a_process_ran_all_the_same_is_not_told(
    app: Any, caplog: pytest.LogCaptureFixture, callback: str
) -> None:
    """Celery before 5.7 does not forget what it has written to a process."""
    world = RecordedJob(app)
    options = world.send()
    world.drop()
    options["accept_callback"](7, 0.0)
    options[callback](OK if callback == "callback" else boom())
    assert world.told == []
    assert caplog.records == []


def test_a_batch_that_runs_is_not_dropped(app: Any) -> None:
    """Once the pool has started on a batch it ends as any other."""
    world = RecordedJob(app)
    options = world.send()
    options["accept_callback"](7, 0.0)
    world.drop()
    options["callback"](OK)
    assert world.ids_told("on_success") == IDS


def test_revoked_members_are_dropped(app: Any) -> None:
    """A member that was revoked while it was buffered is not run; its neighbours are."""
    world = RecordedJob(app)
    worker_state.revoked.add("id-1")
    options = world.send()
    assert [member.id for member in options["args"][2]] == ["id-0", "id-2"]
    assert world.said[1] == ["ack"]
    options["callback"]((False, [(False, "None")] * 2, 0.1))
    assert world.ids_told("on_success") == ["id-0", "id-2"]


def test_expired_members_are_dropped(app: Any) -> None:
    """A member that expired while it was buffered is not run."""
    past = "2001-01-01T00:00:00+00:00"
    world = RecordedJob(app, headers=[{}, {"expires": past}, {}])
    assert [member.id for member in world.send()["args"][2]] == ["id-0", "id-2"]


def test_nothing_is_sent_when_all_are_revoked(app: Any) -> None:
    """A batch without members never reaches the pool, and gives back its room."""
    world = RecordedJob(app)
    worker_state.revoked.update(IDS)
    with pytest.raises(TaskRevokedError):
        world.job.execute_using_pool(world.pool)
    assert world.pool.calls == []
    assert world.released
    assert world.finished
