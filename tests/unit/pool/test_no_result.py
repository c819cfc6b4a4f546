"""Requests that a body leaves without a result are logged once for each task and process."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery.backends.base import DisabledBackend

from kit.log import messages
from kit.tracing import World

MARK = (
    "Task unit.click: the body has returned and left 3 of 3 requests without an outcome, so their "
    "callers wait for ever. The first of them is <SimpleRequest: unit.click[id-0] args=['id-0'] "
    "kwargs={}>. Call request.mark_as_done(result) for each request, or set return_results=True "
    "and return a list of their results. If nobody waits for results, set ignore_result=True. "
    "This is logged once for each task and process"
)


@pytest.fixture
def world(app: Any) -> World:
    return World(app)


def test_the_message(world: World, caplog: Any) -> None:
    """It names the task, the count, an id and each way to mend it."""
    world.run(lambda requests: None)
    assert messages(caplog, logging.WARNING) == [MARK]
    world.run(None)
    assert len(messages(caplog, logging.WARNING)) == 1, "once"


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_body_that_returns_as_many_values(world: World, caplog: Any, kind: Any) -> None:
    """As a newcomer writes it: the option is what is missing."""
    world.run(lambda requests: kind(request.id for request in requests))
    (line,) = messages(caplog, logging.WARNING)
    what = f"returned a {kind.__name__} with one item for each request: set return_results=True"
    assert what in line


@pytest.mark.parametrize("returned", [[1, 2], [1, 2, 3, 4], "abc", {"id-0": 1}], ids=repr)
def test_a_body_that_returns_something_else(world: World, caplog: Any, returned: Any) -> None:
    """These are no results, so marks come first."""
    world.run(lambda requests: returned)
    assert messages(caplog, logging.WARNING) == [MARK]


def test_some_are_marked(world: World, caplog: Any) -> None:
    """Those are not counted, nor what was retried or rejected."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done()
        requests[1].reject()

    world.run(body)
    (line,) = messages(caplog, logging.WARNING)
    assert "left 1 of 3 requests without an outcome" in line
    assert "[id-2]" in line


def retry(requests: Any) -> None:
    for request in requests:
        request.retry()


def fail(requests: Any) -> None:
    raise KeyError("x")


QUIET: dict[str, tuple[Any, dict[str, Any]]] = {
    "nobody waits for a result": (lambda requests: None, {"ignore_result": True}),
    "the body raises": (fail, {}),
    "all are retried": (retry, {}),
    "they are returned": (lambda requests: [1, 2, 3], {"return_results": True}),
}


@pytest.mark.parametrize(("body", "options"), QUIET.values(), ids=QUIET)
def test_there_is_nothing_to_say(app: Any, body: Any, options: Any, caplog: Any) -> None:
    """Every request has an outcome, or nobody waits for one."""
    world = World(app, **options)
    app.conf.task_always_eager = False
    world.run(body, ignore_result=options.get("ignore_result", False))
    assert messages(caplog, logging.WARNING) == []


def test_without_a_result_backend(app: Any, caplog: Any) -> None:
    """Nobody can wait."""
    world = World(app)
    world.define(lambda requests: None)
    world.task.backend = DisabledBackend(app)
    world.run(None)
    assert messages(caplog, logging.WARNING) == []


def test_an_eager_call(world: World, caplog: Any) -> None:
    """Its result is what the body returns."""
    task = world.define(lambda requests: 5)
    assert task.apply((1,)).get() == 5
    assert messages(caplog, logging.WARNING) == []
