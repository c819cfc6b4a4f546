"""What the tests have in common: it behaves like what it stands in for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.base import BasePool
from celery.worker import state as worker_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.asynchronous import timer as kombu_timer
from kombu.transport.virtual import Channel as VirtualChannel
from kombu.utils.limits import TokenBucket
from nonsense import call

from celery_batches import SimpleRequest
from celery_batches.testing import consumer as testing
from celery_batches.testing.pool import InlinePool
from kit.batch_worker import BatchWorker
from kit.channel import Channel
from kit.clock import Clock, Entry, Timer
from kit.interleave import explore
from kit.limits import Bucket, HandBucket
from kit.log import Problems
from kit.pool import Pool, Starts
from kit.requests import make_request
from kit.stage import Stage
from kit.tasks import make_task
from kit.worker import InProcessWorker, deliver

#: What stands in for what, and by which methods.
STAND_INS = [
    (Pool, BasePool, ("apply_async", "terminate_job")),
    (Timer, kombu_timer.Timer, ("call_at", "call_after", "cancel")),
    (Entry, kombu_timer.Entry, ("cancel",)),
    (Channel, VirtualChannel, ("basic_ack", "basic_reject")),
    (HandBucket, TokenBucket, ("can_consume", "expected_time")),
    (Bucket, TokenBucket, ("can_consume", "expected_time")),
    (InlinePool, BasePool, ("apply_async",)),
    (testing.TokenBucket, TokenBucket, ("can_consume", "expected_time")),
]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (getattr(ours, name), getattr(theirs, name))
        for ours, theirs, names in STAND_INS
        for name in names
    ],
    ids=lambda method: method.__qualname__,
)
def test_it_is_called_as_what_it_stands_in_for(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    """The same arguments, in the same order, by the same names."""
    known = list(inspect.signature(ours).parameters)
    expected = [name for name in inspect.signature(theirs).parameters if name != "kwargs"]
    assert [name for name in known if name != "kwargs"] == expected


def record(told: list[Any], name: str) -> Callable[..., None]:
    return lambda *args: told.append((name, *args))


@pytest.mark.parametrize(
    ("starts", "at_once", "later"),
    [
        (Starts.WHEN_TOLD, [], ["accepted", "ended"]),
        (Starts.AT_ONCE, ["accepted"], ["ended"]),
        (Starts.AND_ENDS, ["accepted", "ended"], []),
    ],
)
def test_a_pool_starts_a_call_when_it_should(
    starts: Starts, at_once: list[str], later: list[str]
) -> None:
    """The worker hears that it has started and that it has ended, once each."""
    told: list[Any] = []
    pool = Pool(starts=starts)
    callbacks = {"accept_callback": record(told, "accepted"), "callback": record(told, "ended")}
    pool.apply_async(sum, args=([1, 2],), **callbacks)
    assert [name for name, *_ in told] == at_once
    while pool.calls:
        pool.run()
    assert [name for name, *_ in told] == at_once + later
    assert told[-1] == ("ended", 3)


def test_a_pool_of_processes_has_copies() -> None:
    """What the worker changes after it has sent it, and what the process changes, stays there."""
    for pickles, expected in ((False, [1, 2]), (True, [1])):
        told: list[Any] = []
        pool, argument = Pool(pickles=pickles), [1]
        pool.apply_async(
            sorted,
            args=(argument,),
            accept_callback=record(told, "accepted"),
            callback=record(told, "ended"),
        )
        argument.append(2)
        pool.run()
        assert told[-1] == ("ended", expected)


def test_the_timer_fires_in_order_and_on_time() -> None:
    """Also what an entry adds, and not what it cancels; the clock shows the time of each."""
    timer, seen = Timer(Clock(0.0)), []

    def note(name: str) -> None:
        seen.append((name, timer.clock.now))
        if name == "first":
            timer.call_after(1.0, note, ("added",))
            timer.cancel(third)

    timer.call_at(4.0, note, ("second",))
    timer.call_at(2.0, note, ("first",))
    third = timer.call_at(3.5, note, ("third",))
    timer.call_at(6.0, note, ("last",))
    timer.advance(5.0)
    assert seen == [("first", 2.0), ("added", 3.0), ("second", 4.0)]
    assert timer.clock.now == 5.0
    assert len(timer.armed) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([0.0, 0.5, 4.0, 10.0]), max_size=12))
def test_both_workers_make_the_same_batches(app: Celery, steps: list[float]) -> None:
    """The one with a fake consumer, and the one with Celery's own and kombu's.

    Each step is a call, and how long it takes until the next.
    """
    task = make_task(app, flush_every=3, flush_interval=5)
    fake_clock, real_clock = Clock(), Clock()
    with Problems() as problems:
        fake = BatchWorker(task, fake_clock)
        real = InProcessWorker(app, real_clock, problems)
        for number, seconds in enumerate([*steps, 10.0]):
            fake.send()
            fake.advance(seconds)
            deliver(real, call(task.name, f"id-{number}"))
            real.advance(seconds)
        assert [[f"id-{tag}" for tag in tags] for tags in real.batches] == [
            ids for _, ids in fake.batches
        ]
        assert real.batches
    worker_state.reset_state()


def test_a_request_for_a_body(app: Celery) -> None:
    """It has the arguments and the headers that are asked for."""
    request = make_request(make_task(app), "a", (1,), {"b": 2}, priority=3)
    assert isinstance(request, SimpleRequest)
    assert (request.id, list(request.args), request.kwargs) == ("a", [1], {"b": 2})
    assert request.delivery_info["priority"] == 3


def test_every_schedule_is_played_once() -> None:
    """Two actors with one point each: whoever goes first, and whether they change places."""
    seen: list[tuple[str, ...]] = []

    def play(decisions: Any) -> Stage:
        stage, lines = Stage(decisions), []

        def left() -> None:
            lines.append("left 1")
            stage.point()
            lines.append("left 2")

        def right() -> None:
            lines.append("right")

        stage.actor(left)
        stage.actor(right)
        stage.run()
        seen.append(tuple(lines))
        return stage

    assert explore(play, departures=2) == len(seen) == 3
    assert set(seen) == {
        ("left 1", "left 2", "right"),
        ("left 1", "right", "left 2"),
        ("right", "left 1", "left 2"),
    }
