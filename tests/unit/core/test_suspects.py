"""How many redelivered items may share a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_batches.core import suspects
from celery_batches.core.suspects import (
    LAST_LEVEL,
    MAX_REMEMBERED,
    REMEMBERED_SECONDS,
    Memory,
    Past,
    batch_size,
    level_after_loss,
    level_of,
)

LEVELS = st.integers(0, LAST_LEVEL)
SIZES = st.integers(1, 10**9)


@pytest.mark.parametrize(
    ("flush_every", "sizes"),
    [
        (1, [1, 1, 1, 1]),
        (2, [2, 1, 1, 1]),
        (10, [10, 4, 2, 1]),
        (100, [100, 21, 4, 1]),
        (1000, [1000, 100, 10, 1]),
        (50_000, [50_000, 1357, 36, 1]),
    ],
)
def test_each_level_has_smaller_batches(flush_every: int, sizes: list[int]) -> None:
    """After three losses an item is alone, within a delivery limit of 3."""
    assert [batch_size(level, flush_every) for level in range(LAST_LEVEL + 1)] == sizes


@given(flush_every=SIZES, level=LEVELS, share=st.floats(0, 1))
def test_a_lost_batch_never_comes_together_again(
    flush_every: int, level: int, share: float
) -> None:
    """The next batch is smaller than the lost one, and no larger than its level may have."""
    size = max(1, int(batch_size(level, flush_every) * share))
    after = level_after_loss(level, size=size, flush_every=flush_every)
    assert level < after <= LAST_LEVEL or after == level == LAST_LEVEL
    assert batch_size(after, flush_every) < size or size == 1


@pytest.mark.parametrize(
    ("past", "deliveries", "is_redelivered", "level"),
    [
        (None, None, False, 0),
        (None, 7, False, 0),  # Another queue has counted it.
        (None, None, True, 1),
        (None, 0, True, 0),
        (None, 2, True, 2),
        (None, 19, True, LAST_LEVEL),
        (None, -1, True, 0),
        ((0, 0), None, True, 0),
        ((0, 0), 1, True, 0),  # The return that it remembers.
        ((0, 4), 4, True, 0),  # The broker has not counted it.
        ((0, 4), 6, True, 1),  # Another worker has returned it once more.
        ((2, 1), 2, True, 2),
        ((2, 0), None, False, 2),  # Some brokers have no flag.
    ],
)
def test_the_level_of_a_delivery(
    past: tuple[int, int] | None, deliveries: int | None, is_redelivered: bool, level: int
) -> None:
    """What a worker remembers counts more than what the broker says."""
    remembered = None if past is None else Past(*past, arrival=None, noted=0)
    found = level_of(remembered, deliveries=deliveries, is_redelivered=is_redelivered)
    assert found == level


def past(
    level: int = 0, deliveries: int = 0, arrival: float | None = None, noted: float = 0
) -> Past:
    return Past(level, deliveries, arrival, noted)


def test_what_is_recalled_is_forgotten() -> None:
    memory = Memory()
    memory.remember("a", past(level=2, arrival=5.0))
    assert len(memory.past) == 1
    assert memory.recall("b", now=0) is None
    assert memory.recall("a", now=0) == past(level=2, arrival=5.0)
    assert memory.recall("a", now=0) is None
    assert len(memory.past) == 0


def test_the_higher_level_and_the_older_arrival_stay() -> None:
    """A request may be released after its batch was lost, or the other way round."""
    memory = Memory()
    memory.remember("a", past(level=2, arrival=5.0))
    memory.remember("a", past(level=1, deliveries=3, arrival=7.0, noted=1))
    memory.remember("a", past(level=0, arrival=None, noted=2))
    assert memory.recall("a", now=3) == past(level=2, deliveries=3, arrival=5.0, noted=2)


def test_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REMEMBERED == 10_000
    monkeypatch.setattr(suspects, "MAX_REMEMBERED", 3)
    memory = Memory()
    for name in "abcadef":
        memory.remember(name, past())
    assert len(memory.past) == 3
    assert [name for name in "abcdef" if memory.recall(name, now=0)] == ["d", "e", "f"]


def test_a_day_is_enough() -> None:
    """What is not redelivered by then was acknowledged, or is somewhere else."""
    memory = Memory()
    memory.remember("a", past(noted=0))
    memory.remember("b", past(noted=1))
    assert memory.recall("a", now=REMEMBERED_SECONDS + 0.5) is None
    memory.remember("c", past(noted=REMEMBERED_SECONDS + 2))
    assert len(memory.past) == 1, "the old one takes no room"
