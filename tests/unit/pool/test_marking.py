"""What the body says of a request becomes its outcome."""

from __future__ import annotations

import logging
from threading import Thread
from typing import Any

import pytest

from celery_batches import SimpleRequest
from celery_batches.pool.run import BatchRun
from kit.log import messages
from kit.messages import IDS
from kit.tracing import WAYS, World, mark_done, mark_failed


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_marked_requests_end_as_marked(world: World, way: str, raises: bool) -> None:
    """What the body says of a request holds, whether the body raises afterwards or not."""

    def body(requests: Any) -> None:
        mark_done(world, way, requests[0], 42)
        mark_failed(world, way, requests[1], ValueError("bad"))
        if raises:
            raise KeyError("boom")

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, raises]
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE" if raises else "PENDING"]
    assert world.app.AsyncResult("id-0").result == 42
    assert isinstance(world.app.AsyncResult("id-1").result, ValueError)


def test_methods_take_effect_when_the_body_ends(world: World) -> None:
    """While the body runs, nothing is written for what its requests' methods say."""
    seen: list[str] = []

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        seen.append(world.app.AsyncResult("id-0").state)

    world.run(body)
    assert seen == ["PENDING"]
    assert world.states[0] == "SUCCESS"


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_the_first_outcome_wins(
    world: World, first: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever way it was set, a second outcome of a request has no effect."""

    def body(requests: Any) -> None:
        mark_done(world, first, requests[0], "first")
        mark_failed(world, second, requests[0], ValueError("second"))
        mark_failed(world, first, requests[1], ValueError("first"))
        mark_done(world, second, requests[1], "second")
        requests[2].mark_as_done()

    reports = world.run(body)
    assert [failed for failed, _ in reports] == [False, True, False]
    assert world.states == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert len(messages(caplog, logging.WARNING)) == (2 if second == "idiom" else 0)


def test_a_backend_that_is_away_is_the_bodys_concern(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If neither a result nor a failure can be stored, the body hears of it."""

    def away(*args: Any, **kwargs: Any) -> None:
        raise OSError("away")

    heard: list[str] = []

    def body(requests: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(world.app.backend, "store_result", away)
            with pytest.raises(OSError, match="away") as caught:
                mark_done(world, "idiom", requests[0], 1)
            heard.append(str(caught.value))
        mark_done(world, "idiom", requests[0], 2)

    world.run(body)
    assert heard == ["away"]
    assert world.app.AsyncResult("id-0").result == 2


def test_marking_from_another_thread(world: World) -> None:
    """The methods of a request may be called by threads of the body."""

    def body(requests: Any) -> None:
        threads = [Thread(target=r.mark_as_done, args=(r.id,)) for r in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    world.run(body)
    assert [world.app.AsyncResult(id).result for id in IDS] == IDS


def test_marking_when_the_batch_is_over(world: World) -> None:
    """A request of a batch that is over says so, instead of losing what it is told."""
    kept: list[SimpleRequest] = []
    world.run(lambda requests: kept.extend(requests))
    for mark in (
        kept[0].mark_as_done,
        lambda: kept[0].mark_as_failure(ValueError()),
        kept[0].retry,
        kept[0].reject,
    ):
        with pytest.raises(RuntimeError, match=r"id-0.*its batch has ended"):
            mark()


@pytest.mark.parametrize("exc", ["text", ValueError, SystemExit(1), None])
def test_mark_as_failure_takes_an_exception(world: World, exc: Any) -> None:
    """What is no exception is refused there and then."""
    heard: list[Any] = []

    def body(requests: Any) -> None:
        with pytest.raises(TypeError, match=r"id-0.*takes an exception"):
            requests[0].mark_as_failure(exc)
        heard.append(1)

    world.run(body)
    assert heard


@pytest.mark.parametrize(
    ("options", "message"),
    [({"exc": "why"}, "must be an exception"), ({"countdown": "soon"}, "number of seconds")],
)
def test_retry_checks_its_arguments(options: Any, message: str) -> None:
    """A retry that makes no sense is refused there and then."""
    request = SimpleRequest("id", "name", (), {}, {}, "w@h")
    with pytest.raises(TypeError, match=message):
        request.retry(**options)


def test_update_state_of_all_and_of_one(world: World) -> None:
    """Without an id it is for each request that has no outcome yet."""
    seen: list[Any] = []

    def body(self: Any, requests: Any) -> None:
        requests[0].mark_as_done(1)
        self.update_state(state="PROGRESS", meta={"done": 1})
        self.update_state("id-2", "FURTHER")
        self.update_state("elsewhere", "OTHER")
        seen.extend(world.states)
        seen.append(world.app.AsyncResult("elsewhere").state)

    world.define(body, bind=True)
    world.run(None)
    assert seen == ["PENDING", "PROGRESS", "FURTHER", "OTHER"]
    assert world.app.AsyncResult("id-1").info == {"done": 1}


def test_requests_of_their_own_making(world: World) -> None:
    """Requests that were made by hand can be run, and run again."""
    world.define(lambda requests: requests[0].mark_as_done(len(requests)))
    request = SimpleRequest("id-0", "unit.click", (), {}, None, "w@h")
    for _ in range(2):
        batch = BatchRun(
            task=world.task, requests=[request], id="batch", trigger="manual", hostname="w@h"
        )
        batch.run()
        assert batch.applied[0].kind == "done"
    assert world.app.AsyncResult("id-0").result == 1
