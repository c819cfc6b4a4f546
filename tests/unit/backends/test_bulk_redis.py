"""In Redis a batch's states are stored as Celery stores each, in two round trips."""

from __future__ import annotations

import logging
from os import getpid
from typing import Any

import pytest
from celery import states

from kit.requests import task_context
from kit.sites import CALLS, CONFIGS, ROUND_TRIPS, Failure, same


@pytest.mark.redis
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_is_stored_and_published_as_by_celery(
    site: Any, sent: list[str], config: str, call: str
) -> None:
    """Keys, bytes, expiry and messages are those of ordinary tasks that end in the same way."""
    here = site(**CONFIGS[config])
    here.backend.get("connected")
    messages = here.received("done", "fail", "other", "nothing", "fail", "done", **CALLS[call])
    if call == "ignored":
        here.task.store_errors_even_if_ignored = True
    sent.clear()
    reports = here.run(messages)
    assert sent == ROUND_TRIPS
    at_once, told = here.stored(), here.published()
    here.clear()
    here.run_alone(messages, reports)
    assert same(here.stored()) == at_once
    assert here.published() == told
    numbers = [1, 4] if call == "ignored" else [0, 1, 2, 4, 5]
    task_keys = [here.backend.get_key_for_task(f"id-{n}") for n in numbers]
    assert list(at_once) == [channel for channel, _ in told] == task_keys


@pytest.mark.redis
@pytest.mark.parametrize("size", [2, 100, 1000])
def test_a_batch_costs_two_round_trips(site: Any, sent: list[str], size: int) -> None:
    here = site()
    messages = here.received(*["done"] * size)
    here.backend.get("connected")
    sent.clear()
    here.run(messages)
    assert sent == ROUND_TRIPS
    assert len(here.keys()) == len(here.published()) == size


@pytest.mark.redis
def test_a_body_that_raises_costs_two_round_trips(site: Any, sent: list[str]) -> None:
    """The failure of every request is stored like a result."""
    here = site()

    def body(requests: Any) -> None:
        raise Failure("body")

    here.body = body
    messages = here.received(*["done"] * 5)
    here.backend.get("connected")
    sent.clear()
    reports = here.run(messages)
    assert sent == ROUND_TRIPS
    at_once = here.stored()
    here.clear()
    here.run_alone(messages, reports)
    assert same(here.stored()) == at_once


@pytest.mark.redis
def test_nothing_is_sent_when_no_result_is_wanted(site: Any, sent: list[str]) -> None:
    here = site()
    sent.clear()
    here.run(here.received("done", "fail", "done", "fail", ignore_result=True))
    here.run(here.received(*["nothing"] * 5))
    assert sent == []


@pytest.mark.redis
def test_track_started_costs_two_round_trips(site: Any, sent: list[str]) -> None:
    """That requests run is stored at once, before the body."""
    here = site(result_extended=True)
    here.task.track_started = True
    during: list[Any] = []

    def body(requests: Any) -> None:
        during.extend([list(sent), here.stored()])
        sent.clear()
        here.mark(requests)

    here.body = body
    messages = here.received(*["done"] * 5)
    here.backend.get("connected")
    sent.clear()
    here.run(messages)
    assert during[0] == sent == ROUND_TRIPS
    assert here.states(*range(5)) == ["SUCCESS"] * 5
    here.clear()
    for message in messages:
        here.backend.store_result(
            message.id,
            {"pid": getpid(), "hostname": "w@h"},
            states.STARTED,
            request=task_context(message),
        )
    assert same(here.stored()) == during[1]


@pytest.mark.redis
def test_a_result_is_not_overwritten(site: Any) -> None:
    """A request that was done before keeps its result; that of any other state is stored."""
    here = site()
    here.backend.mark_as_done("id-0", "before")
    here.backend.mark_as_failure("id-1", Failure("before"))
    here.backend.store_result("id-2", None, states.STARTED)
    before = here.stored()
    here.published()
    here.run(here.received("fail", "done", "done", "done"))
    assert here.states(0, 1, 2, 3) == ["SUCCESS"] * 4
    key = here.backend.get_key_for_task("id-0")
    assert here.stored()[key][0] == before[key][0]
    assert len(here.published()) == 3


@pytest.mark.redis
def test_an_id_that_comes_twice(site: Any) -> None:
    """The first result of an id stays; a failure before it does not."""
    here = site()
    messages = here.received("fail", "done", "other", "fail", task_id="id-0")
    reports = here.run(messages)
    at_once, told = here.stored(), here.published()
    here.clear()
    here.run_alone(messages, reports)
    assert same(here.stored()) == at_once
    assert here.published() == told
    assert here.backend.get_result("id-0") == {"way": "done"}
    assert len(told) == 2


@pytest.mark.redis
def test_a_result_that_cannot_be_encoded_fails_alone(
    site: Any, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its neighbours are stored at once all the same."""
    here = site()
    messages = here.received("done", "function", "done")
    here.backend.get("connected")
    sent.clear()
    reports = here.run(messages)
    assert [failed for failed, _ in reports] == [False, True, False]
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert sent[:4] == [*ROUND_TRIPS, "GET", "GET"]
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
