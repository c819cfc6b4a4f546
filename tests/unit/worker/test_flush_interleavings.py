"""Overrides of `flush` that pass requests on from another thread, with every change of place."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker import state as worker_state

from celery_batches import Batches
from kit.actors import StagedWorker
from kit.interleave import explore
from kit.tasks import make_task


class Keeps(Batches):
    """Keeps what it is to flush."""

    abstract = True

    def flush(self, requests: Any) -> None:
        self.kept.append(list(requests))


class Passes(Batches):
    """Keeps what it is to flush, and passes all on by itself too."""

    abstract = True

    def flush(self, requests: Any) -> None:
        self.kept.append(list(requests))
        super().flush(requests)


def pass_on_elsewhere(world: StagedWorker, kept: list[Any]) -> None:
    """Requests come in; a thread of the override passes on what it keeps."""
    world.receiver(2)
    world.timer()

    def passer() -> None:
        while True:
            world.stage.wait_for(lambda: bool(kept), idle=True)
            world.task.apply_buffer(kept.pop(0))

    world.stage.actor(passer, serves=True)


@pytest.mark.parametrize("base", [Keeps, Passes])
def test_every_schedule_of_a_thread_that_passes_on(app: Any, base: type[Batches]) -> None:
    """Each request runs once, is acknowledged once, and is known to the worker until it runs."""
    task = app.tasks[make_task(app, base=base, flush_every=2, flush_interval=10).name]

    def play(decisions: Any) -> Any:
        task.kept = []
        with StagedWorker(task, decisions) as world:
            pass_on_elsewhere(world, task.kept)
            run_one = world.run_one

            def run_what_is_known() -> None:
                members = {member.id for member in world.pool.calls[0].args[2]}
                assert members <= set(worker_state.requests), "the worker does not know of it"
                run_one()

            world.run_one = run_what_is_known  # type: ignore[method-assign]
            stage = world.play()
            assert sorted(i for ids in world.pool.given for i in ids) == ["id-0", "id-1"]
            return stage

    assert explore(play, departures=1) > 30
