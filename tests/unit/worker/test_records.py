"""Which batch has which piece of the shared memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_batches.core.end_record import End, EndRecord
from celery_batches.worker import records as module
from celery_batches.worker.records import BatchRecord, Records

SIZE = 1024


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The processes of the pool."""
    pids: set[int] = set()
    monkeypatch.setattr(module, "is_child", pids.__contains__)
    return pids


def take(records: Records, requests: int) -> EndRecord:
    record = records.take(requests)
    assert record is not None
    return record


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=40))
def test_no_byte_belongs_to_two_batches(steps: list[tuple[int, bool]]) -> None:
    """In whatever order batches of any size come and go."""
    records = Records(bytearray(SIZE), SIZE)
    held: list[EndRecord] = []
    for requests, ends in steps:
        record = records.take(requests)
        if record is not None:
            held.append(record)
        used = [byte for each in held for byte in range(each.start, each.start + 1 + each.size)]
        assert len(used) == len(set(used))
        assert max(used, default=0) < SIZE
        if ends and held:
            records.give_back(held.pop(0))


def test_a_piece_is_used_again_and_knows_nothing() -> None:
    records = Records(bytearray(SIZE), SIZE)
    first = take(records, 10)
    first.begin()
    first.note(3, End.DONE)
    records.give_back(first)
    second = take(records, 10)
    assert second.start == first.start
    assert second.ends() is None


def test_a_process_that_may_still_write_keeps_its_piece(children: set[int]) -> None:
    records = Records(bytearray(SIZE), SIZE)
    children.add(7)
    lost = take(records, 10)
    records.retire(lost, 7)
    assert take(records, 10).start != lost.start
    children.remove(7)
    assert take(records, 10).start == lost.start


def test_where_there_is_no_room_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    records = Records(bytearray(SIZE), SIZE)
    assert records.take(600) is not None
    assert records.take(600) is None
    assert records.take(600) is None
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "not all batches have a record" in line


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    """Those of this worker."""
    records = Records(bytearray(SIZE), SIZE)
    monkeypatch.setattr(module, "_records", records)
    return records


def opened(records: Records, requests: int = 2) -> tuple[BatchRecord, Any]:
    """The record of a batch, and what the process of the pool writes to."""
    record = BatchRecord()
    start = record.open(requests)
    assert start is not None
    theirs = EndRecord(records._memory, start, requests)
    theirs.begin()
    return record, theirs


def test_what_a_lost_process_has_noted_is_known_when_its_piece_is_anothers(
    records: Records, children: set[int]
) -> None:
    record, theirs = opened(records)
    theirs.note(0, End.DONE)
    assert record.ends() == [End.DONE, None]
    record.leave(7)
    _, others = opened(records)
    assert others.start == theirs.start
    others.note(1, End.FAILED)
    assert record.ends() == [End.DONE, None]


def test_a_batch_that_was_reported_gives_its_piece_back_once(records: Records) -> None:
    record, theirs = opened(records)
    record.close()
    record.close()
    record.leave(7)
    starts = [take(records, 2).start for _ in range(2)]
    assert starts[0] == theirs.start
    assert starts[1] != theirs.start


def test_a_batch_of_an_unknown_process_keeps_its_piece_until_it_is_reported(
    records: Records,
) -> None:
    """A process may have begun with it, or not."""
    record, theirs = opened(records)
    record.leave(None)
    assert take(records, 2).start != theirs.start
    record.close()
    assert take(records, 2).start == theirs.start


def test_a_worker_without_shared_memory_has_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_records", None)
    monkeypatch.setattr(module, "shared_memory", lambda: None)
    record = BatchRecord()
    assert record.open(3) is None
    assert record.ends() is None
    record.leave(7)
    record.close()
