"""What must hold of a strategy whatever its threads do, and of each request in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence

from celery.worker import state as worker_state
from kombu import Message

from celery_batches.worker.strategy import BatchStrategy
from kit.clock import Entry


def check_each_point(
    strategy: BatchStrategy, armed: Sequence[Entry], in_flight: Sequence[Entry]
) -> None:
    """There is one timer at most, and one where something waits for it.

    Arguments:
        strategy: The strategy.
        armed: The entries of the timer.
        in_flight: Those that the timer has taken, and has not called to the end.
    """
    wakeups = [entry for entry in armed if entry.fun == strategy._on_timer]
    assert len(wakeups) <= 1, "two timers"
    # Nothing here may call what is traced: that has points of its own.
    pending = strategy._pending
    if strategy._lock.is_held or not any(pending._buffers):  # type: ignore[attr-defined]  # A stepped lock.
        return
    coming = [entry for entry in in_flight if entry.fun == strategy._on_timer]
    assert any(entry.args[0] == strategy._pending.timer.wakeup for entry in wakeups + coming), (
        "no timer"
    )


def check_batches(
    batches: Sequence[Sequence[str]], sources: Sequence[list[str]], flush_every: int
) -> None:
    """Each request is in one batch at most, and in order.

    Arguments:
        batches: The ids in each batch that was run.
        sources: The ids that came one after the other.
        flush_every: The option of the task.
    """
    given = Counter(task_id for ids in batches for task_id in ids)
    assert max(given.values(), default=1) == 1, "in two batches"
    assert max(map(len, batches), default=0) <= flush_every
    for ids in batches:
        for source in sources:
            own = [task_id for task_id in ids if task_id in source]
            assert own == sorted(own, key=source.index), "out of order"


def check_messages(
    messages: Mapping[str, Message], ran: Container[str], dropped: list[str] | None
) -> None:
    """What has run is acknowledged, and nothing else is, but what was revoked.

    Arguments:
        messages: All that were delivered, by the ids of their requests.
        ran: The ids of the requests that were run.
        dropped: What is said of those that the strategy has dropped, None if it has dropped none.
    """
    for task_id, message in messages.items():
        said = [what for what, _ in message.channel.said]
        if task_id in ran:
            assert said == ["ack"], f"{task_id}: {said}"
        elif task_id not in worker_state.revoked or said != ["ack"]:
            assert dropped is not None, f"{task_id} is lost"
            assert said == dropped, f"{task_id}: {said}"


def check_the_end(strategy: BatchStrategy, *, retired: bool) -> None:
    """Nothing is left over.

    Arguments:
        strategy: The strategy.
        retired: Whether its connection has ended.
    """
    consumer = strategy.consumer
    room = consumer.qos.total - consumer.initial_prefetch_count
    assert room in ({0} if retired else {0, strategy.task.flush_every}), "the room is wrong"
    assert not consumer.qos.busy(0, 0), "a batch has not ended"
    assert not strategy.buffered
    assert not consumer.timer.armed  # type: ignore[attr-defined]  # The kit's timer.
    for known in (worker_state.requests, worker_state.reserved_requests):
        assert not known, "the worker thinks it still has them"
    assert not worker_state.active_requests
    assert not getattr(worker_state, "scheduled_requests", ()), "Celery 5.7 and newer"
