"""A process that is lost while links and chains are sent: none of them is lost with it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from celery import states

from kit.losses import Killed, kill

WAYS = ["linked", "chained", "both", "neither"]


@pytest.mark.redis
@pytest.mark.parametrize("marks", ["methods", "backend"])
@pytest.mark.parametrize("then", ["runs again", "is found done"])
@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("at", range(10))
def test_no_request_is_done_before_what_follows_is_sent(
    site: Any, monkeypatch: pytest.MonkeyPatch, at: int, sent: bool, then: str, marks: str
) -> None:
    """At any command to Redis. What is not done is sent when its message comes again."""
    here = site(task_always_eager=True, task_store_eager_result=True)
    here.task.acks_late = True
    called: set[tuple[str, str]] = set()

    @here.app.task(name="unit.follow", ignore_result=True)
    def follow(value: Any, kind: str) -> None:
        called.add((value["way"], kind))

    def mark(requests: Any) -> None:
        for request in requests:
            here.app.backend.mark_as_done(request.id, {"way": request.args[0]}, request=request)

    if marks == "backend":
        here.body = mark
    link, step = follow.s("linked"), follow.s("chained")
    waits = [{"callbacks": [link]}, {"chain": [step]}, {"callbacks": [link], "chain": [step]}, {}]
    messages = here.received(*zip(WAYS, waits, strict=True))
    here.backend.get("connected")
    with monkeypatch.context() as patched, suppress(Killed):
        kill(patched, here.backend, at, sent=sent)
        here.run(messages)
    wanted: list[set[tuple[str, str]]] = [
        {("linked", "linked")},
        {("chained", "chained")},
        {("both", "linked"), ("both", "chained")},
        set(),
    ]
    for state, follows in zip(here.states(0, 1, 2, 3), wanted, strict=True):
        assert state != states.SUCCESS or follows <= called
    here.app.conf.worker_deduplicate_successful_tasks = then == "is found done"
    for message in messages:
        message.delivery_info["redelivered"] = True
    here.run(messages)
    assert called == set.union(*wanted)
    assert here.states(0, 1, 2, 3) == [states.SUCCESS] * 4
