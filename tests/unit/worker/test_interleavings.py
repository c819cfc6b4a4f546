"""The adapter on several threads, with every change of place between them that matters.

The consumer, the timer and the pool are threads of their own, as with a broker that has no event
loop; gevent and eventlet change places at fewer points. They run one at a time and change places
where the test says so (`interleave.py`): no run depends on luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_batches.worker.job import BatchJob
from celery_batches.worker.pending import PendingRequests
from celery_batches.worker.sender import BatchSender
from celery_batches.worker.strategy import BatchStrategy
from kit.actors import StagedWorker
from kit.interleave import SteppedLock, explore
from kit.limits import Bucket
from kit.stage import Deadlock, Stage

Cast = Callable[[StagedWorker], None]


def stages(task: Any, cast: Cast, **options: Any) -> Callable[[Sequence[int]], Stage]:
    def play(decisions: Sequence[int]) -> Stage:
        with StagedWorker(task, decisions, **options) as world:
            cast(world)
            return world.play()

    return play


def flushes(world: StagedWorker) -> None:
    """Batches fill, and what is left over is sent by the timer."""
    world.receiver(3)
    world.timer()
    world.runner()


def flushes_of_two(world: StagedWorker) -> None:
    """Messages and ETAs come in at the same time."""
    world.receiver(2)
    world.receiver(1)
    world.timer()


def loses_its_connection(world: StagedWorker) -> None:
    """What waits is dropped, and nothing of it is sent any more."""
    world.receiver(3)
    world.timer()
    world.keeper("retire")


def loses_its_connection_with_etas(world: StagedWorker) -> None:
    """Requests whose time comes later are dropped too."""
    world.receiver(2, later=True)
    world.timer(for_etas=True)
    world.timer()
    world.keeper("retire")


def loses_its_connection_before_etas(world: StagedWorker) -> None:
    """Their time comes while that is seen to."""
    for _ in range(2):
        world.receive(world.message(later=True))
    world.keeper("retire")
    world.timer(for_etas=True)
    world.timer()


def is_reloaded(world: StagedWorker) -> None:
    """Whatever is on its way to the old strategy reaches the new one."""
    world.receiver(1)
    world.receiver(2, later=True)
    world.timer(for_etas=True)
    world.timer()
    world.keeper("load")


def is_reloaded_and_loses_its_connection(world: StagedWorker) -> None:
    world.receiver(3)
    world.timer()
    world.keeper("load", "retire")


def loses_its_connection_with_batches_in_the_pool(world: StagedWorker) -> None:
    """Those that have not begun do not run, whoever has sent them; those that have, end."""
    world.receiver(4)
    world.timer()
    world.keeper("load", "retire", "drop")
    world.runner()


def is_revoked(world: StagedWorker) -> None:
    """A request is revoked somewhere between its receipt and its run."""
    world.receiver(2)
    world.revoker("id-0")
    world.timer()
    world.runner()


def is_limited(world: StagedWorker) -> None:
    """The rate limit changes while batches wait for it."""
    world.keeper("limit", "limit", "unlimit")
    world.receiver(3)
    world.timer(hasty=True)


def is_limited_from_the_start(world: StagedWorker) -> None:
    """Batches that wait for the rate limit have the timer come earlier."""
    world.consumer.task_buckets[world.task.name] = Bucket(world.clock)
    world.receiver(1)
    world.timer(hasty=True)
    world.receiver(2)


def times_out(world: StagedWorker) -> None:
    """The time limit is reached while the batch comes to its end, on another thread."""
    world.receiver(2)
    world.timer()
    world.runner()
    world.timeouter()


CASTS = [
    flushes,
    flushes_of_two,
    loses_its_connection,
    loses_its_connection_with_etas,
    loses_its_connection_before_etas,
    is_reloaded,
    is_reloaded_and_loses_its_connection,
    loses_its_connection_with_batches_in_the_pool,
    is_revoked,
    is_limited,
    is_limited_from_the_start,
    times_out,
]


def is_reloaded_while_one_comes(world: StagedWorker) -> None:
    """A message is on its way to the old strategy."""
    world.receive(world.message())
    world.receiver(1)
    world.keeper("load")
    world.timer()


LOST: Any = BatchStrategy.__dict__["lost"].fget


def is_reloaded_while_a_batch_goes(world: StagedWorker) -> None:
    """A batch is on its way to the pool."""
    jobs: list[BatchJob] = []
    with world.patch.context() as patch:
        patch.setattr(world.consumer, "on_task_request", jobs.append)
        for _ in range(2):
            world.receive(world.message())

    def sender() -> None:
        world.consumer.on_task_request(jobs[0])

    world.stage.actor(sender)
    world.keeper("load")
    world.timer()


@pytest.mark.parametrize(
    ("cast", "functions"),
    [
        (
            is_reloaded_while_one_comes,
            (BatchStrategy.add, PendingRequests.add),
        ),
        (
            is_reloaded_while_a_batch_goes,
            (BatchJob.execute_using_pool, BatchSender._ours_unless_lost, LOST),
        ),
    ],
)
def test_every_schedule_with_two_departures(task: Any, cast: Cast, functions: Any) -> None:
    """The threads may also be stopped while they hold a lock."""

    def closely(world: StagedWorker) -> None:
        world.stage.everywhere = True
        world.stage.only = {fun.__code__ for fun in (*functions, BatchStrategy._close)}
        cast(world)

    assert explore(stages(task, closely), departures=2) > 200


@pytest.mark.parametrize("cast", CASTS, ids=lambda cast: cast.__name__)
def test_every_schedule_with_one_departure(task: Any, cast: Cast) -> None:
    """Wherever one thread is stopped for the others to go on: every request is run once."""
    assert explore(stages(task, cast), departures=1) > 30


def test_every_schedule_with_one_departure_of_a_worker_that_stops(task: Any) -> None:
    """What is dropped goes back to the broker, once."""
    for cast in CASTS[2:5]:
        explore(stages(task, cast, requeue=True), departures=1)


#: Points to go on for before another does, and which one.
SWITCHES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=30)


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # The task is as good as new.
)
@given(
    counts=st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)),
    events=st.lists(st.sampled_from(["load", "limit", "unlimit"]), max_size=4),
    retires=st.booleans(),
    requeue=st.booleans(),
    acks_late=st.booleans(),
    revokes=st.booleans(),
    hasty=st.booleans(),
    everywhere=st.booleans(),
    switches=SWITCHES,
)
def test_any_schedule_of_all_of_it(
    task: Any,
    counts: Sequence[int],
    events: list[str],
    retires: bool,
    requeue: bool,
    acks_late: bool,
    revokes: bool,
    hasty: bool,
    everywhere: bool,
    switches: list[tuple[int, int]],
) -> None:
    """All of it at the same time, with as many departures as there may be."""
    decisions = [choice for gap, who in switches for choice in (*[0] * gap, who)]
    task.acks_late = acks_late
    with StagedWorker(task, decisions, requeue=requeue) as world:
        world.stage.everywhere = everywhere
        messages, others, etas = counts
        world.receiver(messages)
        world.receiver(others)
        world.receiver(etas, later=True)
        world.timer(for_etas=True)
        world.timer(hasty=hasty)
        world.runner()
        world.runner()
        world.keeper(*events, *["retire"] * retires)
        if revokes:
            world.revoker("id-0")
        world.play()


def test_a_deadlock_is_found() -> None:
    """Where two locks are taken in two orders these tests do not hang: they fail."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions)
        locks = SteppedLock(stage), SteppedLock(stage)

        def forwards() -> None:
            with locks[0]:
                stage.point()
                with locks[1]:
                    pass

        def backwards() -> None:
            with locks[1], locks[0]:
                pass

        stage.actor(forwards)
        stage.actor(backwards)
        stage.run()
        return stage

    play(())
    with pytest.raises(AssertionError) as failure:
        explore(play, departures=1)
    assert isinstance(failure.value.__cause__, Deadlock)
