"""A request's link, chain, group and errbacks go on when it ends, and once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import group

from kit.log import messages
from kit.tracing import WAYS, World, mark_done, mark_failed


@pytest.mark.parametrize("way", WAYS)
def test_a_done_request_sets_off_what_waits_for_it(world: World, way: str) -> None:
    """Link, chain and group callbacks go on with the result, once, and are its children."""

    def body(requests: Any) -> None:
        mark_done(world, way, requests[0], 7)
        mark_failed(world, way, requests[1], ValueError())

    callbacks = [world.callback.s(), group(world.callback.s(), world.callback.si("immutable"))]
    waits = {
        "callbacks": callbacks,
        "chain": [world.following.s().set(task_id="following")],
        "errbacks": [world.errback.s()],
    }
    world.run(body, waits, waits)
    assert sorted(world.called, key=str) == [
        ("callback", "immutable"),
        ("callback", 7),
        ("callback", 7),
        ("errback", "id-1"),
        ("following", 7),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_callbacks_are_children_of_their_request(sending: World, way: str) -> None:
    """The result of a request knows the tasks that it has set off, as for a task."""

    def body(requests: Any) -> None:
        mark_done(sending, way, requests[0], 7)

    sending.run(body, {"callbacks": [sending.callback.s()], "chain": [sending.following.s()]})
    meta = sending.app.backend.get_task_meta("id-0")
    assert len(meta["children"]) == 2


def test_several_callbacks(world: World) -> None:
    """Several callbacks are all called, by way of one group, as Celery does."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)

    world.run(body, {"callbacks": [world.callback.s(), world.callback.si(2)]})
    assert sorted(world.called, key=str) == [("callback", 1), ("callback", 2)]


@pytest.mark.parametrize("inherit", [True, False])
def test_what_a_callback_inherits(sending: World, inherit: bool) -> None:
    """A callback gets its parent, its root and, if set so, the priority of its request."""
    world = sending
    world.app.conf.task_inherit_parent_priority = inherit

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)

    world.run(body, {"callbacks": [world.callback.s()], "root_id": "root", "priority": 7})
    ((name, sent),) = world.sent
    assert (name, sent["parent_id"], sent["root_id"]) == ("unit.callback", "id-0", "root")
    assert sent["priority"] == (7 if inherit else None)


def test_unmarked_requests_set_off_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What waits for an unmarked request does not go on, and the log says so once."""
    linked = {"callbacks": [world.callback.s()]}
    world.run(lambda requests: "value", linked, {"chain": []}, ignore_result=True)
    assert world.called == []
    (warning,) = messages(caplog, logging.WARNING)
    assert "1 of its requests" in warning
    assert "id-0" in warning
    assert "request.mark_as_done(result)" in warning


@pytest.mark.parametrize("way", WAYS)
def test_an_errback_that_cannot_be_called_changes_nothing(world: World, way: str) -> None:
    """The request has failed with its own exception, once, and its neighbours go on."""

    def body(requests: Any) -> None:
        mark_failed(world, way, requests[0], ValueError("own"))
        mark_done(world, way, requests[1], 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.app.backend), "_call_task_errbacks", _broken)
        reports = world.run(body, {"errbacks": [world.errback.s()]})
    assert world.states == ["FAILURE", "SUCCESS", "PENDING"]
    assert str(world.app.AsyncResult("id-0").result) == "own"
    assert [failed for failed, _ in reports] == [True, False, False]


def _broken(*args: Any, **kwargs: Any) -> None:
    raise TypeError("no such argument")
