"""What is stored and checked before the body runs: STARTED, and what was done before."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker import state as worker_state

from kit.messages import IDS
from kit.tracing import World


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
