"""Handlers run once for each request, as that request."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from celery_batches import Batches
from kit.log import messages
from kit.messages import IDS
from kit.tracing import World


def test_handlers_run_as_their_request(sending: World) -> None:
    """In a handler, self.request is the request it is called for."""
    told: list[tuple[str, Any]] = []

    class Loud(Batches):
        abstract = True

        def before_start(self, *args: Any) -> None:
            told.append(("before_start", self.request.id))

        def on_success(self, *args: Any) -> None:
            told.append(("on_success", self.request.id))

        def on_failure(self, *args: Any) -> None:
            told.append(("on_failure", self.request.id))

        def on_retry(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
            told.append(("on_retry", self.request.id))
            assert (task_id, args, type(exc)) == ("id-2", ["id-2"], ValueError)

        def after_return(self, *args: Any) -> None:
            told.append(("after_return", self.request.id))

    def body(requests: Any) -> None:
        requests[1].mark_as_failure(KeyError())
        requests[2].retry(exc=ValueError("x"))

    sending.define(body, base=Loud)
    sending.run(None)
    assert told == [
        *(("before_start", id) for id in IDS),
        *(("on_success", "id-0"), ("after_return", "id-0")),
        *(("on_failure", "id-1"), ("after_return", "id-1")),
        ("on_retry", "id-2"),
    ]


def test_a_broken_before_start_fails_its_request_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not run; the others are."""
    seen: list[list[str]] = []

    class Picky(Batches):
        abstract = True

        def before_start(self, task_id: str, *args: Any) -> None:
            if task_id == "id-1":
                raise ValueError("not this one")

    world.define(lambda requests: seen.append([r.id for r in requests]), base=Picky)
    reports = world.run(None)
    assert seen == [["id-0", "id-2"]]
    assert [failed for failed, _ in reports] == [False, True, False]
    assert isinstance(world.app.AsyncResult("id-1").result, ValueError)
    assert len(messages(caplog, logging.ERROR)) == 1


@pytest.mark.parametrize("header", ["batch", "outcome", "members"])
def test_a_header_may_have_any_name(sending: World, header: str) -> None:
    """A custom header is no concern of the library's, in the body or in a handler."""
    told: list[Any] = []

    class Telling(Batches):
        abstract = True

        def on_retry(self, exc: Any, task_id: str, *args: Any) -> None:
            told.append(self.request.get(header))
            self.update_state(task_id, "TOLD")
            sending.app.backend.mark_as_done("elsewhere", 1)

    sending.define(lambda requests: requests[0].retry(), base=Telling)
    sending.run(None, more_headers={header: "blue"})
    assert told == ["blue"]
    assert sending.states[0] == "TOLD"
