"""Which failures were told before a batch was lost: by when they were stored."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from hypothesis import given
from hypothesis import strategies as st

from celery_batches.errors import exception_of
from celery_batches.worker.stored_ends import find_reports, told_failures
from kit.jobs import RecordedJob

START = datetime(2020, 1, 1, tzinfo=timezone.utc)


def at(seconds: int | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


#: When each failure was stored, and when each success: in seconds from the start of the batch.
CASES: list[tuple[dict[str, int | None], dict[str, int | None], str, str]] = [
    # failures, successes, those that are awaited, those that were told
    ({}, {}, "", ""),
    ({"a": 1}, {}, "", "a"),
    ({"a": 1}, {}, "a", ""),
    ({"a": 1}, {"b": 2}, "a", "a"),
    ({"a": 2}, {"b": 1}, "a", ""),
    ({"a": 1, "b": 2}, {}, "ab", "a"),
    ({"a": 1, "b": 2}, {}, "a", "ab"),
    ({"a": -1, "b": 2}, {}, "", "b"),
    ({"a": None, "b": 2}, {"c": None}, "", "b"),
    ({"a": None}, {}, "", ""),
    ({"a": 0}, {}, "", "a"),
]


@pytest.mark.parametrize(("failures", "successes", "awaited", "told"), CASES)
def test_all_but_the_last_were_told(
    failures: dict[str, int | None], successes: dict[str, int | None], awaited: str, told: str
) -> None:
    dates = {name: at(seconds) for name, seconds in {**failures, **successes}.items()}
    assert told_failures(set(failures), set(awaited), dates, since=START) == set(told)


def test_of_a_batch_that_was_not_started_none_was_told() -> None:
    assert told_failures({"a"}, set(), {"a": at(1)}, since=None) == set()


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5)),
    st.sets(st.sampled_from("abcdef")),
)
def test_at_most_those_of_the_last_moment_hear_twice(
    dates: dict[str, int], awaited: set[str]
) -> None:
    told = told_failures(
        set(dates), awaited, {name: at(seconds) for name, seconds in dates.items()}, since=START
    )
    assert all(dates[name] == max(dates.values()) and name in awaited for name in set(dates) - told)


@pytest.mark.parametrize(
    "exc", [Ignore("x"), Reject("x"), Retry("x"), MemoryError("x"), WorkerLostError("x")], ids=repr
)
def test_no_exception_is_more_than_the_reason_of_a_failure(app: Any, exc: Exception) -> None:
    """Celery's request would reject or retry the call, or end the worker."""
    world = RecordedJob(app)
    world.send()["accept_callback"](7, 0.0)
    app.backend.mark_as_failure("id-0", exc, "its traceback")
    failed, info = find_reports(world.task, world.requests)["id-0"]
    assert failed
    assert not isinstance(info, str)
    assert type(exception_of(info)) is RuntimeError
    assert info.traceback == "its traceback"
