"""The adapter on several threads, with every change of place between them that matters.

The consumer, the timer and the pool are threads of their own, as with a broker that has no event
loop; gevent and eventlet change places at fewer points. They run one at a time and change places
where the test says so (`interleave.py`): no run depends on luck.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.asynchronous.semaphore import DummyLock
from kombu.common import QoS
from unit.interleave import Deadlock, Stage, SteppedLock, SteppedRLock, explore
from unit.support import Clock, FakeConsumer, protocol_2

import celery_batches.pool.marking
import celery_batches.request
import celery_batches.worker.job
import celery_batches.worker.limits
import celery_batches.worker.prefetch
import celery_batches.worker.strategy
from celery_batches import Batches, SimpleRequest
from celery_batches.core.outcomes import UNMARKED, Outcome
from celery_batches.worker.job import BatchJob
from celery_batches.worker.prefetch import Prefetch
from celery_batches.worker.strategy import BatchStrategy

ADAPTER = (celery_batches.worker.strategy, celery_batches.worker.job, celery_batches.worker.limits)


class Pool:
    """Takes batches; actors run them."""

    num_processes = 2
    apply_result = None
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.waiting: list[dict[str, Any]] = []
        #: What runs.
        self.running: list[dict[str, Any]] = []
        #: Whether the caller had a lock.
        self.locked = False
        #: The id of each batch that it was given.
        self.batches: list[str] = []
        #: Those that it has begun to run, and the ids in each.
        self.begun: list[str] = []
        self.given: list[list[str]] = []

    def apply_async(self, target: Any, **options: Any) -> Any:
        self.stage.point()
        if self.stage.current is not None and self.stage.current.locks:
            # The solo pool would run the body now; that of gevent may wait for another to end.
            self.locked = True
        self.waiting.append(options)
        self.batches.append(options["correlation_id"])
        # It may be run, and end, before the caller hears of it.
        self.stage.point()
        return Handle()


class Handle:
    """What a pool returns for a task."""


class Bucket:
    """A token bucket that gets a token each second of the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spent = clock.now

    def can_consume(self, tokens: int) -> bool:
        if self.clock.now - self.spent < tokens:
            return False
        self.spent += tokens
        return True

    def expected_time(self, tokens: int) -> float:
        return max(0.0, self.spent + tokens - self.clock.now)


class Consumer(FakeConsumer):
    """Sends what is ready to the pool, as the worker does."""

    disable_rate_limits = False

    def on_task_request(self, job: Any) -> None:
        with contextlib.suppress(TaskRevokedError):
            job.execute_using_pool(self.pool)


class World:
    """A batch task in a worker, and its actors."""

    def __init__(self, task: Any, decisions: Sequence[int], *, requeue: bool = False) -> None:
        self.task = task
        self.app = task.app
        self.clock = Clock()
        self.stage = Stage(
            decisions,
            trace=ADAPTER,
            fine=[BatchStrategy._end],
            coarse=[BatchJob.__init__, BatchJob._take_members, BatchJob._batch_limits],
        )
        self.stage.check = self.check
        self.pool = Pool(self.stage)
        self.requeue = requeue
        #: The batches that have asked whether they are too late, and were not.
        self.in_time: set[str] = set()
        self.messages: dict[str, Any] = {}
        #: Before any ETA.
        self.soon = datetime.now(timezone.utc) + timedelta(minutes=1)
        #: The ids that come one after the other.
        self.sources: list[list[str]] = []
        self.in_flight: list[Any] = []
        self.retired = False
        #: The batches that had begun when the others were dropped, if they were.
        self.in_good_time: set[str] | None = None

    def __enter__(self) -> World:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("celery_batches.worker.strategy.monotonic", self.clock)
        for module in ("strategy", "job"):
            name = f"celery_batches.worker.{module}.Lock"
            self.patch.setattr(name, partial(SteppedLock, self.stage))
        self.patch.setattr(
            "celery_batches.worker.prefetch.RLock", partial(SteppedRLock, self.stage)
        )
        self.patch.setattr("celery_batches.worker.strategy.BatchJob", self._job)
        self.consumer = Consumer(self.app)
        self.consumer.qos._mutex = DummyLock()  # As Celery does, on every pool.
        self.consumer.pool = self.pool
        self.consumer.task_buckets[self.task.name] = None
        self.load()
        return self

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()
        worker_state.reset_state()
        worker_state.revoked.clear()

    def load(self) -> None:
        """Celery connects, or loads its tasks again."""
        handler = self.task.Strategy(self.task, self.app, self.consumer)
        self.consumer.strategies[self.task.name] = handler

    @property
    def strategy(self) -> BatchStrategy:
        found: BatchStrategy = self.consumer.strategies[self.task.name].__self__
        return found

    def _job(self, *args: Any, drop: Any, **options: Any) -> BatchJob:
        def drop_if_retired(requests: Any) -> bool:
            if not self.retired:
                self.in_time.add(job.id)
            dropped: bool = drop(requests)
            return dropped

        job = BatchJob(*args, drop=drop_if_retired, **options)
        return job

    # What the actors do.

    def message(self, *, later: bool = False) -> Any:
        number = len(self.messages)
        # One after the other: the clock of a machine may be put back at any time.
        eta = {"eta": self.soon + timedelta(seconds=number)} if later else {}
        message = protocol_2(self.app, f"id-{number}", self.task.name, **eta)
        self.messages[message.headers["id"]] = message
        return message

    def receive(self, message: Any) -> None:
        handler = self.consumer.strategies[self.task.name]
        handler(message, None, message.ack_log_error, message.reject_log_error, [])

    def receiver(self, count: int, *, later: bool = False) -> None:
        messages = [self.message(later=later) for _ in range(count)]
        self.sources.append([message.headers["id"] for message in messages])

        def receiver() -> None:
            for message in messages:
                self.receive(message)

        self.stage.actor(receiver)

    def timer(self, *, hasty: bool = False, for_etas: bool = False) -> None:
        """Fires what was armed, also if it is cancelled after it was taken.

        Arguments:
            hasty: Whether it may fire a moment too early, as those of gevent do.
            for_etas: Whether it is for requests with an ETA, which come when they like.
        """

        def is_ours(entry: Any) -> bool:
            return isinstance(entry.args[0], float) is not for_etas

        def timer() -> None:
            early = False
            while True:
                self.stage.wait_for(lambda: any(map(is_ours, self.armed)), idle=True)
                entry = min(filter(is_ours, self.armed), key=lambda entry: entry.eta)
                self.consumer.timer.entries.remove(entry)
                self.in_flight.append(entry)
                early = for_etas or (hasty and not early)
                if not early:
                    self.clock.now = max(self.clock.now, entry.eta)
                self.stage.point(after_you=hasty)
                entry.fun(*entry.args)
                self.in_flight.remove(entry)

        self.stage.actor(timer, serves=True)

    def runner(self) -> None:
        """A thread of the pool."""

        def runner() -> None:
            while True:
                self.stage.wait_for(lambda: bool(self.pool.waiting), idle=True)
                self.run_one()

        self.stage.actor(runner, serves=True)

    def run_one(self) -> None:
        options = self.pool.waiting.pop(0)
        self.pool.begun.append(options["correlation_id"])
        members = options["args"][2]
        options["accept_callback"](1, 0.0)
        self.pool.given.append([member.id for member in members])
        self.pool.running.append(options)
        self.stage.point()
        options["callback"]((False, [(False, "None")] * len(members), 0.1))

    def timeouter(self) -> None:
        """The thread of the pool that watches the time limits."""

        def timeouter() -> None:
            while True:
                self.stage.wait_for(lambda: bool(self.pool.running), idle=True)
                self.pool.running.pop()["timeout_callback"](False, 1.0)

        self.stage.actor(timeouter, serves=True)

    def keeper(self, *events: str) -> None:
        """The consumer's own thread, which has this to do."""

        def keeper() -> None:
            for event in events:
                getattr(self, event)()
                self.stage.point()

        self.stage.actor(keeper)

    def retire(self) -> None:
        """The connection is lost, or the worker stops."""
        self.strategy.retire(requeue=self.requeue)
        self.retired = True

    def drop(self) -> None:
        """After that, nothing begins that waits in the pool."""
        self.strategy.drop_waiting()
        self.in_good_time = set(self.pool.begun)

    def limit(self) -> None:
        """``control.rate_limit`` sets a limit."""
        self.consumer.task_buckets[self.task.name] = Bucket(self.clock)

    def unlimit(self) -> None:
        self.consumer.task_buckets[self.task.name] = None

    def revoker(self, task_id: str) -> None:
        def revoker() -> None:
            worker_state.revoked.add(task_id)

        self.stage.actor(revoker)

    # What must hold.

    @property
    def armed(self) -> list[Any]:
        return self.consumer.timer.armed

    def check(self) -> None:
        """What must hold at each point."""
        strategy = self.strategy
        wakeups = [entry for entry in self.armed if entry.fun == strategy._on_timer]
        assert len(wakeups) <= 1, "two timers"
        assert len(strategy._buffer) < self.task.flush_every, "the buffer is too full"
        if strategy._lock.is_held or not (strategy._buffer or strategy._full):
            return
        coming = [entry for entry in self.in_flight if entry.fun == strategy._on_timer]
        assert any(entry.args[0] == strategy._timer_at for entry in wakeups + coming), "no timer"

    def play(self) -> Stage:
        """Run the actors; then see what has become of each request."""
        self.stage.run()
        assert not self.pool.locked, "sent under the lock"
        assert self.in_time.issuperset(self.pool.batches), "sent after the connection was lost"
        while self.pool.waiting:
            self.run_one()
        if self.in_good_time is not None:
            ran = [i for i, ids in zip(self.pool.begun, self.pool.given, strict=True) if ids]
            assert self.in_good_time.issuperset(ran), "run from a connection that is lost"
        given = Counter(task_id for ids in self.pool.given for task_id in ids)
        assert max(given.values(), default=1) == 1, "in two batches"
        assert max(map(len, self.pool.given), default=0) <= self.task.flush_every
        for ids in self.pool.given:
            for source in self.sources:
                own = [task_id for task_id in ids if task_id in source]
                assert own == sorted(own, key=source.index), "out of order"
        for task_id, message in self.messages.items():
            said = [what for what, _ in message.channel.said]
            if task_id in given:
                assert said == ["ack"], f"{task_id}: {said}"
            elif task_id not in worker_state.revoked or said != ["ack"]:
                assert self.retired, f"{task_id} is lost"
                assert said == (["requeue"] if self.requeue else []), f"{task_id}: {said}"
        room = self.consumer.qos.total - self.consumer.initial_prefetch_count
        assert room in ({0} if self.retired else {0, self.task.flush_every}), "the room is wrong"
        assert not self.consumer.qos.busy(0, 0), "a batch has not ended"
        assert not len(self.strategy._buffer)
        assert not self.strategy._full
        assert not self.armed
        for known in (worker_state.requests, worker_state.reserved_requests):
            assert not known, "the worker thinks it still has them"
        assert not worker_state.active_requests
        assert not getattr(worker_state, "scheduled_requests", ()), "Celery 5.7 and newer"
        return self.stage


@pytest.fixture
def task(app: Any) -> Any:
    @app.task(base=Batches, name="unit.click", flush_every=2, flush_interval=10)
    def click(requests: Any) -> None: ...

    return click


Cast = Callable[[World], None]


def stages(task: Any, cast: Cast, **options: Any) -> Callable[[Sequence[int]], Stage]:
    def play(decisions: Sequence[int]) -> Stage:
        with World(task, decisions, **options) as world:
            cast(world)
            return world.play()

    return play


def flushes(world: World) -> None:
    """Batches fill, and what is left over is sent by the timer."""
    world.receiver(3)
    world.timer()
    world.runner()


def flushes_of_two(world: World) -> None:
    """Messages and ETAs come in at the same time."""
    world.receiver(2)
    world.receiver(1)
    world.timer()


def loses_its_connection(world: World) -> None:
    """What waits is dropped, and nothing of it is sent any more."""
    world.receiver(3)
    world.timer()
    world.keeper("retire")


def loses_its_connection_with_etas(world: World) -> None:
    """Requests whose time comes later are dropped too."""
    world.receiver(2, later=True)
    world.timer(for_etas=True)
    world.timer()
    world.keeper("retire")


def loses_its_connection_before_etas(world: World) -> None:
    """Their time comes while that is seen to."""
    for _ in range(2):
        world.receive(world.message(later=True))
    world.keeper("retire")
    world.timer(for_etas=True)
    world.timer()


def is_reloaded(world: World) -> None:
    """Whatever is on its way to the old strategy reaches the new one."""
    world.receiver(1)
    world.receiver(2, later=True)
    world.timer(for_etas=True)
    world.timer()
    world.keeper("load")


def is_reloaded_and_loses_its_connection(world: World) -> None:
    world.receiver(3)
    world.timer()
    world.keeper("load", "retire")


def loses_its_connection_with_batches_in_the_pool(world: World) -> None:
    """Those that have not begun do not run, whoever has sent them; those that have, end."""
    world.receiver(4)
    world.timer()
    world.keeper("load", "retire", "drop")
    world.runner()


def is_revoked(world: World) -> None:
    """A request is revoked somewhere between its receipt and its run."""
    world.receiver(2)
    world.revoker("id-0")
    world.timer()
    world.runner()


def is_limited(world: World) -> None:
    """The rate limit changes while batches wait for it."""
    world.keeper("limit", "limit", "unlimit")
    world.receiver(3)
    world.timer(hasty=True)


def is_limited_from_the_start(world: World) -> None:
    """Batches that wait for the rate limit have the timer come earlier."""
    world.consumer.task_buckets[world.task.name] = Bucket(world.clock)
    world.receiver(1)
    world.timer(hasty=True)
    world.receiver(2)


def times_out(world: World) -> None:
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


def is_reloaded_while_one_comes(world: World) -> None:
    """A message is on its way to the old strategy."""
    world.receive(world.message())
    world.receiver(1)
    world.keeper("load")
    world.timer()


def is_reloaded_while_a_batch_goes(world: World) -> None:
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
        (is_reloaded_while_one_comes, (BatchStrategy.add, BatchStrategy._add, BatchStrategy._put)),
        (is_reloaded_while_a_batch_goes, (BatchJob.execute_using_pool, BatchStrategy._drop)),
    ],
)
def test_every_schedule_with_two_departures(task: Any, cast: Cast, functions: Any) -> None:
    """The threads may also be stopped while they hold a lock."""

    def closely(world: World) -> None:
        world.stage.everywhere = True
        world.stage.only = {fun.__code__ for fun in (*functions, BatchStrategy._end)}
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
    with World(task, decisions, requeue=requeue) as world:
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


def test_what_waited_for_a_slot_is_sent_without_the_lock(task: Any) -> None:
    """A signal handler may do so (cold shutdown stops the pool), while its thread has the lock."""
    with World(task, ()) as world:
        world.receiver(2)
        jobs: list[BatchJob] = []
        world.consumer.on_task_request = jobs.append  # type: ignore[method-assign]
        world.stage.run()
        with world.strategy._lock:
            jobs[0].execute_using_pool(world.pool)
        assert len(world.pool.batches) == 1


def new_prefetch(stage: Stage, tell: Any = None) -> Prefetch:
    """A prefetch count of 4 as a worker has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_batches.worker.prefetch.RLock", partial(SteppedRLock, stage))
        prefetch = Prefetch(QoS(tell or (lambda prefetch_count: None), 4), lambda: 4)
    prefetch._mutex = DummyLock()  # As Celery does, on every pool.
    return prefetch


def test_a_batch_that_ends_twice_at_once() -> None:
    """Its room is given back once, between whichever two instructions its callbacks meet."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, fine=[Prefetch.refund, Prefetch.finish])
        prefetch = new_prefetch(stage)
        ended, running = prefetch.charge(10), prefetch.charge(10)

        def succeeds() -> None:
            ended.finish()

        def times_out() -> None:
            ended.finish()

        for fun in (succeeds, times_out):
            stage.actor(fun)
        stage.run()
        assert prefetch.total == 4 + 9
        assert prefetch.busy(10, 0) == 1
        running.finish()
        assert prefetch.total == 4
        return stage

    assert explore(play, departures=2) > 500


def test_batches_end_while_they_are_counted() -> None:
    """``worker_disable_prefetch`` counts batches that end on other threads."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, trace=[celery_batches.worker.prefetch])
        stage.everywhere = True
        prefetch = new_prefetch(stage)
        batches = [prefetch.charge(10) for _ in range(3)]
        counted: list[int] = []

        def counts() -> None:
            counted.append(prefetch.busy(30, 0))

        def ends() -> None:
            batches[1].finish()

        stage.actor(counts)
        stage.actor(ends)
        stage.run()
        assert counted in ([3], [2 + 10])  # Its requests are not told yet.
        return stage

    assert explore(play, departures=2) > 30


def test_telling_the_broker_holds_up_nobody() -> None:
    """While the broker is told, batches come and go on other threads, and it is told of them."""
    told: list[int] = []

    def tell(prefetch_count: int) -> None:
        told.append(prefetch_count)
        if len(told) == 1:
            # With gevent, the consumer may be here and wait for the pool to have room for a batch.
            other = threading.Thread(target=batch.finish)
            other.start()
            other.join(10)
            assert not other.is_alive()

    prefetch = Prefetch(QoS(tell, 4), lambda: 4)
    batch = prefetch.charge(10)
    while prefetch.prev != prefetch.value:  # As Celery's loop has it.
        prefetch.update()
    assert told == [13, 4]


def test_the_broker_is_told_of_every_change() -> None:
    """A change that comes while the broker is told of another is not forgotten."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, trace=[celery_batches.worker.prefetch])
        stage.everywhere = True
        told: list[int] = []

        def tell(prefetch_count: int) -> None:
            told.append(prefetch_count)
            stage.point()

        prefetch = new_prefetch(stage, tell)

        def consumer() -> None:
            prefetch.update()

        def other() -> None:
            prefetch.make_room(10)

        stage.actor(consumer)
        stage.actor(other)
        stage.run()
        while prefetch.prev != prefetch.value:  # As Celery's loop has it.
            prefetch.update()
        assert told[-1] == prefetch.total == 14
        return stage

    assert explore(play, departures=2) > 100


def new_request() -> SimpleRequest:
    return SimpleRequest("id", "unit.click", (), {}, {}, "host")


def test_the_first_outcome_wins_on_any_thread() -> None:
    """Of two threads that mark a request while the body ends, one is right; too late is told."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, fine=[SimpleRequest._note, SimpleRequest._settle])
        stage.fine.add(SimpleRequest._leave.__code__)
        request = new_request()
        request._enter(SimpleNamespace())
        said: list[str] = []
        ended: list[Outcome] = []

        def mark(how: str, value: Any) -> None:
            try:
                getattr(request, how)(value)
                said.append(how)
            except RuntimeError:
                said.append("too late")

        def marks_as_done() -> None:
            mark("mark_as_done", 1)

        def marks_as_failure() -> None:
            mark("mark_as_failure", KeyError("no"))

        def body_ends() -> None:
            request._leave()
            ended.append(request._outcome or UNMARKED)

        for fun in (marks_as_done, marks_as_failure, body_ends):
            stage.actor(fun)
        stage.run()
        assert (request._outcome or UNMARKED) is ended[0], "it has changed since"
        if ended[0] is UNMARKED:
            assert said == ["too late", "too late"]
        else:
            assert {"done": "mark_as_done", "failed": "mark_as_failure"}[ended[0].kind] in said
        return stage

    assert explore(play, departures=2) > 500


def test_the_backend_is_told_once_of_a_request(task: Any) -> None:
    """Two greenlets mark the same request, and writing lets others go on: one write is made."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, trace=[celery_batches.pool.marking])
        request = new_request()
        request._enter(SimpleNamespace(task=task, eager=False))
        written: list[Any] = []

        class Backend:
            def mark_as_done(self, task_id: str, value: Any, request: Any = None) -> None:
                stage.point()
                written.append(value)

            mark_as_failure = mark_as_done

        backend = Backend()
        celery_batches.pool.marking.watch(backend)

        def marks_as_done() -> None:
            backend.mark_as_done("id", 1, request=request)

        def marks_as_failure() -> None:
            backend.mark_as_failure("id", KeyError("no"), request=request)

        stage.actor(marks_as_done)
        stage.actor(marks_as_failure)
        stage.run()
        assert request._outcome is not None
        assert written == [request._outcome.value]
        return stage

    assert explore(play, departures=2) > 50
