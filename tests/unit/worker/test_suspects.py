"""Requests of a lost batch come again: in smaller batches, beside the full ones of other calls."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import VERSION, Task
from celery.exceptions import TimeLimitExceeded

from celery_batches.worker.redeliveries import ACQUIRED_COUNT
from kit.clock import Clock
from kit.limits import HandBucket
from kit.pool import einfo_of
from kit.redelivering import Redelivering


@pytest.fixture
def late(app: Any, clock: Clock) -> Redelivering:
    return Redelivering(app, clock)


def requeue_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if "requests run again" in line]


def test_a_lost_batch_comes_again_in_smaller_ones(
    late: Redelivering, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says why, and none is about a single call."""
    late.send_fresh(10)
    with caplog.at_level(logging.INFO):
        late.lose()
    (line,) = requeue_lines(caplog)
    assert line.startswith(f"Task {late.task.name}: 10 requests run again, ")
    assert "in batches of at most 4," in line
    late.send_again(*range(10))
    assert late.batches[1:] == [
        ("size", ["id-0", "id-1", "id-2", "id-3"]),
        ("size", ["id-4", "id-5", "id-6", "id-7"]),
    ]
    late.advance(1)
    assert late.batches[3:] == [("interval", ["id-8", "id-9"])]


def test_after_three_losses_a_call_is_alone(
    late: Redelivering, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a broker says: this worker knows."""
    late.send_fresh(10)
    late.lose()
    late.send_again(*range(4))
    late.lose()
    late.send_again(*range(4), flag=False)
    assert late.sizes == [10, 4, 2, 2]
    late.lose()
    late.send_again(2, 3)
    assert late.batches[4:] == [("size", ["id-2"]), ("size", ["id-3"])]
    assert len(requeue_lines(caplog)) == 3
    late.lose()
    assert len(requeue_lines(caplog)) == 3, "there is nothing to say of one that was alone"
    late.send_again(3)
    assert late.batches[6:] == [("size", ["id-3"])]


def test_an_exit_of_the_body_is_a_loss(late: Redelivering) -> None:
    """Pools without processes report it as such."""
    late.send_fresh(10)
    late.lose(error=SystemExit(3))
    late.send_again(*range(10))
    assert late.sizes == [10, 4, 4]


def test_a_small_lost_batch_does_not_come_together_again(late: Redelivering) -> None:
    """A batch that was flushed by interval may be smaller than a suspect's."""
    late.send_fresh(3)
    late.advance(30)
    late.lose()
    late.send_again(0, 1, 2)
    assert late.sizes == [3, 2]


def test_full_batches_go_on_beside_suspects(late: Redelivering) -> None:
    """Neither waits for the other, and each is in the order of its arrival."""
    late.send_again(20, 21)
    late.send_fresh(6)
    late.send_again(22)
    late.send_fresh(4)
    late.send_again(23)
    assert late.batches == [
        ("size", [f"id-{i}" for i in range(10)]),
        ("size", ["id-20", "id-21", "id-22", "id-23"]),
    ]


@pytest.mark.skipif(VERSION < (5, 5), reason="this Celery does not requeue them")
def test_a_hard_time_limit_is_a_loss(
    app: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """If its calls are requeued, that is."""
    options = {"acks_on_failure_or_timeout": False, "acks_on_timeout": False}
    late = Redelivering(app, clock, **options)
    late.send_fresh(10)
    late.lose(error=TimeLimitExceeded(1))
    late.consumer.sent[0].on_timeout(False, 1)
    assert len(requeue_lines(caplog)) == 1
    late.send_again(*range(10))
    assert late.sizes == [10, 4, 4]


def test_a_batch_that_is_not_requeued_leaves_no_suspect(
    app: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    late = Redelivering(app, clock, reject_on_worker_lost=False)
    late.send_fresh(10)
    late.lose()
    assert requeue_lines(caplog) == []
    assert not late.strategy.redeliveries.remembered


def test_what_the_body_requeues_is_no_suspect(late: Redelivering) -> None:
    """The body has said so itself, and it did not take its process with it."""
    late.send_fresh(10)
    for request in late.consumer.sent[0].requests:
        request.reject(requeue=True)
    late.send_again(*range(10), deliveries=1)
    assert late.sizes == [10, 10]


def test_with_early_acknowledgement_a_redelivered_call_has_not_run(app: Any, clock: Clock) -> None:
    early = Redelivering(app, clock, acks_late=False, reject_on_worker_lost=None)
    early.send_again(*range(10), deliveries=5)
    assert early.sizes == [10]


@pytest.mark.skipif(
    not hasattr(Task, "retry_on_worker_lost"), reason="this Celery has no such option"
)
@pytest.mark.parametrize("acks_late", [True, False])
def test_retries_of_a_lost_batch_are_suspects(
    app: Any, clock: Clock, acks_late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They are new messages, which no broker has delivered before."""
    options = {"reject_on_worker_lost": False, "retry_on_worker_lost": True, "max_retries": 3}
    late = Redelivering(app, clock, acks_late=acks_late, **options)
    late.send_fresh(10)
    late.lose()
    late.send_again(*range(10), flag=False)
    assert late.sizes == [10, 4, 4]
    late.send_again(*range(20, 28), flag=False, retries=3)
    late.send_again(28, 29, flag=False, retries=2)
    assert late.sizes == [10, 4, 4, 10]
    caplog.clear()
    late.lose()
    (line,) = requeue_lines(caplog)
    assert ": 2 requests run again" in line, "the others have no retry left"


def test_levels_are_known_before_the_first_comes_again(late: Redelivering) -> None:
    """Without an event loop, another thread may receive it while its neighbours are requeued."""
    late.send_fresh(10)
    job = late.consumer.sent[0]
    first, last = job.requests[0], job.requests[-1]
    last.on_failure = lambda *_, **__: late.send_again(0, 1, 2, 3)  # In between.
    late.lose()
    assert first.is_requeued
    assert late.sizes == [10, 4]


@pytest.mark.parametrize(
    ("headers", "sizes"),
    [
        ({}, [4, 4, 2]),
        ({"deliveries": 1}, [4, 4, 2]),
        ({"deliveries": 2}, [2] * 5),
        ({"deliveries": 3}, [1] * 10),
        ({"deliveries": 20}, [1] * 10),
        ({ACQUIRED_COUNT: 3}, [10]),
        ({ACQUIRED_COUNT: 3, "deliveries": 1}, [4, 4, 2]),
        *(({"deliveries": value}, [4, 4, 2]) for value in ("9", True, 2.5, b"", [], {})),
        ({"deliveries": -(10**30)}, [10]),
        ({"deliveries": 10**30}, [1] * 10),
    ],
)
def test_what_the_broker_says_of_other_workers(
    headers: dict[str, Any], sizes: list[int], late: Redelivering
) -> None:
    """Its count of deliveries if there is one, else its flag. Nonsense is no count."""
    late.send_again(*range(10), **headers)
    late.advance(1)
    assert late.sizes == sizes


def test_what_a_lost_connection_had_is_no_suspect(late: Redelivering) -> None:
    """Neither what was buffered, nor what waited for the pool, nor what runs on."""
    late.send_fresh(25)
    late.consumer.sent[0].on_accepted(1, 0.0)
    late.reconnect()
    late.send_again(*range(25), deliveries=1)
    late.advance(30)
    # The one that runs on; the one that waited was withdrawn.
    assert late.sizes == [10, 0, 10, 10, 5]


def test_a_loss_that_another_worker_had_is_added(late: Redelivering) -> None:
    """This worker returned it once; the broker has counted two returns."""
    late.send_fresh(1)
    late.reconnect()
    late.send_again(0, 1, 2, deliveries=2)
    assert late.batches == [("size", ["id-1", "id-2"])]
    late.advance(1)
    assert late.batches[1:] == [("interval", ["id-0"])]


def test_suspects_are_known_on_the_next_connection(late: Redelivering) -> None:
    """Also those that were buffered once more when it was lost."""
    late.send_fresh(10)
    late.lose()
    late.send_again(0)
    late.reconnect()
    late.send_again(*range(4), flag=False)
    assert late.sizes == [10, 4]


def test_neighbours_of_a_terminated_call_are_no_suspects(late: Redelivering) -> None:
    """It is known why their process has ended."""
    late.send_fresh(10)
    job = late.consumer.sent[0]
    job.on_accepted(1, 0.0)
    job.requests[4]._already_revoked = True
    job.on_failure(einfo_of(SystemExit(15)))
    assert job.requests[0].is_requeued
    late.send_again(*range(4), *range(5, 10))
    late.send_fresh(1)
    assert late.sizes == [10, 10]


def test_there_is_room_for_a_full_batch_beside_suspects(late: Redelivering) -> None:
    """The broker may deliver as much more as the batches of suspects hold, until they have left."""
    qos = late.consumer.qos
    late.send_again(20, deliveries=1)
    assert qos.total == 4 + 4
    late.send_again(21, deliveries=2)
    assert qos.total == 4 + 4 + 2
    late.send()
    assert qos.total == 4 + 4 + 2 + 10
    late.send_again(22, deliveries=3)
    assert qos.total == 4 + 4 + 2 + 10, "one that is alone is an ordinary task"
    late.advance(1)
    for job in late.consumer.sent:
        job._finish()
    assert qos.total == 4 + 10
    late.advance(30)
    late.consumer.sent[-1]._finish()
    assert qos.total == 4


@pytest.mark.parametrize(("acks_late", "room"), [(True, 10 * 3 + 4 + 2), (False, 10 * 3)])
def test_where_the_broker_is_asked_once_suspects_have_room(
    app: Any, clock: Clock, acks_late: bool, room: int
) -> None:
    """Quorum queues: full batches go on while suspects are buffered. Early, there are none."""
    late = Redelivering(app, clock, acks_late=acks_late)
    late.strategy.reserve(3)
    qos = late.consumer.qos
    assert qos.total == 4 + room
    late.send_again(0, 1, deliveries=1)
    assert qos.total == 4 + room
    late.strategy.retire()
    assert qos.total == 4


def test_a_connection_that_ends_takes_the_room_with_it(late: Redelivering) -> None:
    late.send_again(0, 1)
    late.strategy.retire()
    assert late.consumer.qos.total == 4
    assert late.timer.armed == []


def test_what_is_requeued_goes_newest_first(late: Redelivering) -> None:
    """So that the broker delivers the oldest first, whichever buffer had it."""
    said: list[Any] = []
    numbers = [0, 20, 1, 21, 2]
    for number in numbers:
        message = late.send() if number < 10 else late.send_again(number)[0]
        message.channel.basic_reject = lambda *_, n=number, **options: said.append((n, options))
        late.advance(0.1)
    late.strategy.retire(requeue=True)
    assert said == [(number, {"requeue": True}) for number in reversed(numbers)]


def test_an_option_that_changes_applies_to_suspects(late: Redelivering) -> None:
    late.send_again(*range(3))
    late.task.flush_every = 5
    late.send()
    late.advance(0)
    assert late.batches == [("size", ["id-0", "id-1"])]
    late.task.flush_every = 1000
    late.send_again(*range(3, 10))
    assert late.consumer.qos.total == 4 + 1 + 100 + 1000
    late.advance(1)
    assert late.batches[1:] == [("interval", [f"id-{i}" for i in range(2, 10)])]


def test_a_short_interval_holds_for_suspects(app: Any, clock: Clock) -> None:
    late = Redelivering(app, clock, flush_interval=0.25)
    late.send_again(0)
    late.advance(0.25)
    assert late.batches == [("interval", ["id-0"])]


def test_suspects_keep_their_place_when_tasks_are_reloaded(late: Redelivering) -> None:
    late.send_again(0, 1)
    late.advance(0.5)
    late.send()
    late.connect()
    late.send_again(2)
    late.advance(0.5)
    assert late.batches == [("interval", ["id-0", "id-1", "id-2"])]


def test_a_rate_limit_counts_their_batches_too(app: Any, clock: Clock) -> None:
    """What has waited longest has the first token."""
    late = Redelivering(app, clock)
    bucket = HandBucket()
    late.consumer.disable_rate_limits = False
    late.consumer.task_buckets[late.task.name] = bucket
    late.send()
    late.advance(0.5)
    late.send_again(*range(20, 24))
    late.advance(0.5)
    late.send_fresh(9)
    assert late.batches == []
    for number, size in enumerate([10, 4]):
        bucket.tokens = 1
        late.advance(1)
        assert late.sizes[number:] == [size]
