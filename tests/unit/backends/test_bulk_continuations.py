"""Chord parts, callbacks and errbacks, beside states that are stored at once."""

from __future__ import annotations

from typing import Any

import pytest
from celery.backends.redis import RedisBackend
from celery.result import GroupResult


@pytest.mark.redis
@pytest.mark.parametrize("header", ["simple", "join"])
@pytest.mark.parametrize("failing", [False, True])
def test_parts_of_a_chord_are_stored_when_they_are_counted(
    site: Any, monkeypatch: pytest.MonkeyPatch, header: str, failing: bool
) -> None:
    """Once for each, first those that are done, and the body of the chord is sent once."""
    here = site(task_always_eager=True, task_store_eager_result=True)
    called: list[Any] = []
    counted: list[Any] = []

    @here.app.task(name="unit.collect")
    def collect(values: Any) -> None:
        called.append(values)

    count = RedisBackend.on_chord_part_return

    def on_chord_part_return(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        before = here.states(0, 1, 2)
        returned = count(self, request, *args, **kwargs)
        counted.append((request.id, before, here.states(0, 1, 2)))
        return returned

    monkeypatch.setattr(RedisBackend, "on_chord_part_return", on_chord_part_return)
    here.backend.set_chord_size("g", 3)
    if header == "join":
        parts = [here.app.AsyncResult(f"id-{n}") for n in range(3)]
        GroupResult("g", parts, app=here.app).save(here.backend)
    ways = ["first", "fail" if failing else "second", "third"]
    calls = [(way, {"group_index": index}) for index, way in enumerate(ways)]
    chord = collect.s().set(task_id="collected", chord_size=3)
    chord["chord_size"] = 3
    here.run(here.received(*calls, group_id="g", chord=chord))
    stored = ["PENDING"] * 3
    for n in (0, 2, 1) if failing else range(3):
        before, stored = stored, [*stored]
        stored[n] = "FAILURE" if failing and n == 1 else "SUCCESS"
        # A failure is stored first. If it is never counted, Celery finds no success and counts it.
        assert counted.pop(0) == (f"id-{n}", stored if failing and n == 1 else before, stored)
    assert counted == []
    assert called == ([] if failing else [[{"way": way} for way in ways]])
    if failing:
        assert here.backend.get_state("collected") == "FAILURE"


@pytest.mark.redis
def test_what_follows_keeps_its_order(site: Any, sent: list[str]) -> None:
    """Callbacks and chains are sent before a result is stored, errbacks called after a failure.

    What is done comes first.
    """
    here = site(task_always_eager=True, task_store_eager_result=True)
    seen: list[Any] = []

    @here.app.task(name="unit.callback")
    def callback(value: Any) -> None:
        seen.append(("callback", value["way"], *here.states(0, 2)))

    @here.app.task(name="unit.errback")
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        seen.append(("errback", request.id, *here.states(1, 3, 4)))

    calls = [
        ("linked", {"callbacks": [callback.s()]}),
        ("fail", {"errbacks": [errback.s()]}),
        ("chained", {"chain": [callback.s()]}),
        "fail",
        ("fail", {"chain": [callback.s().set(task_id="following")]}),
        "done",
    ]
    here.run(here.received(*calls))
    assert seen == [
        ("callback", "linked", "PENDING", "PENDING"),
        ("callback", "chained", "SUCCESS", "PENDING"),
        ("errback", "id-1", "FAILURE", "FAILURE", "PENDING"),
    ]
    ends = ["SUCCESS", "FAILURE", "SUCCESS", "FAILURE", "FAILURE", "SUCCESS"]
    assert here.states(*range(6)) == ends
    assert here.backend.get_state("following") == "FAILURE"
