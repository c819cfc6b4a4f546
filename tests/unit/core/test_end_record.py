"""The record of a batch, in any piece of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_batches.core.end_record import End, EndRecord, Phase

SIZE = 4


def record(start: int = 0, memory: bytearray | None = None) -> EndRecord:
    return EndRecord(bytearray(b"\xff" * 100) if memory is None else memory, start, SIZE)


def test_of_a_batch_that_nobody_has_begun_nothing_is_known() -> None:
    """So it is if the pool shares no memory. What was there before is of another batch."""
    mine = record()
    mine.clear()
    assert mine.phase is Phase.UNKNOWN
    assert mine.ends() is None


def test_a_batch_that_has_begun_has_no_ends_yet() -> None:
    mine = record()
    mine.begin()
    assert mine.phase is Phase.BEGUN
    assert mine.ends() == [None] * SIZE
    mine.end_body()
    assert mine.phase is Phase.BODY_ENDED
    assert mine.ends() == [None] * SIZE


def test_another_process_begins_anew() -> None:
    """The first one was lost before the worker knew that it had begun."""
    mine = record()
    mine.begin()
    mine.note(1, End.DONE)
    mine.end_body()
    mine.begin()
    assert mine.phase is Phase.BEGUN
    assert mine.ends() == [None] * SIZE


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from(End))),
    st.lists(st.sampled_from([0, *End]), max_size=SIZE),
)
def test_what_is_noted_is_read_and_nothing_beside_it_is_touched(
    start: int, notes: list[tuple[int, End]], last: list[int]
) -> None:
    memory = bytearray(b"\xff" * 100)
    mine = record(start, memory)
    mine.begin()
    expected: list[End | None] = [None] * SIZE
    for index, end in notes:
        mine.note(index, end)
        expected[index] = end
    mine.note_from(SIZE - len(last), bytes(last))
    expected[SIZE - len(last) :] = [End(each) if each else None for each in last]
    assert mine.ends() == expected
    assert set(memory[:start] + memory[start + 1 + SIZE :]) == {0xFF}
