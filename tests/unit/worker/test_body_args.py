"""Arguments for the body that an override has made, with request objects of its own."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker import state as worker_state

from celery_batches import SimpleRequest
from kit.clock import Clock
from kit.flushing import Flushing


def simple(requests: Any) -> list[SimpleRequest]:
    return [SimpleRequest.from_request(request) for request in requests]


@pytest.fixture
def make(app: Any, clock: Clock) -> Any:
    def make(args: Any, **options: Any) -> Flushing:
        def override(flush: Any, requests: Any) -> Any:
            return world.task.apply_buffer(requests, args(requests))

        world = Flushing(app, clock, override, **options)
        return world

    return make


def mark(requests: Any, *more: Any) -> None:
    for request in requests:
        request.mark_as_done(f"done {request.id}")


ALL = [
    lambda requests: (simple(requests),),
    lambda requests: (tuple(simple(requests)),),
    lambda requests: (simple(requests)[::-1],),
    lambda requests: (simple(requests), "more"),
    lambda requests: (set(simple(requests)),),
]


@pytest.mark.parametrize("args", ALL, ids=["list", "tuple", "reversed", "more", "set"])
def test_what_the_body_marks_them_as_counts(args: Any, make: Any) -> None:
    """The objects of the override stand for the requests."""
    world = make(args)
    world.body = mark
    world.receive_batch()
    world.run_all()
    results = [world.app.AsyncResult(f"id-{number}").result for number in range(3)]
    assert results == ["done id-0", "done id-1", "done id-2"]
    assert sorted(world.bodies[0]) == ["id-0", "id-1", "id-2"]
    world.assert_nothing_left()


@pytest.mark.parametrize("args", ALL, ids=["list", "tuple", "reversed", "more", "set"])
def test_those_that_were_revoked_are_left_out(args: Any, make: Any) -> None:
    """The body does not get them."""
    world = make(args)
    world.body = mark
    world.receive_batch()
    worker_state.revoked.add("id-1")
    world.run_all()
    assert sorted(world.bodies[0]) == ["id-0", "id-2"]
    assert world.state(1) == "REVOKED"
    world.assert_nothing_left()


def test_a_dictionary_of_them(make: Any) -> None:
    """Values that were revoked are left out with their keys."""
    seen: list[Any] = []
    world = make(lambda requests: ((), {r.id: r for r in simple(requests)}))

    def body(requests: Any, by_id: Any) -> None:
        seen.extend(by_id)
        mark(by_id.values())

    world.body = body
    world.receive_batch()
    worker_state.revoked.add("id-1")
    world.run_all()
    assert seen == ["id-0", "id-2"]
    assert [world.state(number) for number in range(3)] == ["SUCCESS", "REVOKED", "SUCCESS"]


def test_the_objects_may_have_been_changed(make: Any) -> None:
    """The body sees what the override has made of them."""

    def args(requests: Any) -> Any:
        own = simple(requests)
        own[0].args = ["other"]
        return (own,)

    seen: list[Any] = []
    world = make(args)
    world.body = lambda requests: seen.extend(request.args for request in requests)
    world.receive_batch()
    world.run_all()
    assert seen == [["other"], [1], [2]]


def test_an_object_that_stands_for_no_request_is_refused(make: Any, caplog: Any) -> None:
    """Its mark would not count: the error says which it is, and the requests fail."""
    world = make(lambda requests: ([*simple(requests), SimpleRequest("x", "t", (), {}, {}, "h")],))
    world.receive_batch()
    world.run_all()
    assert world.bodies == []
    assert "'x'" in str(world.app.AsyncResult("id-0").result)
    assert [world.state(number) for number in range(3)] == ["FAILURE"] * 3
    world.assert_nothing_left()
