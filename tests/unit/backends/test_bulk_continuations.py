"""Chord parts, callbacks and errbacks keep their order, beside states that are stored at once."""

from __future__ import annotations

from typing import Any

import pytest
from celery.backends.redis import RedisBackend
from celery.result import GroupResult


@pytest.mark.redis
@pytest.mark.parametrize("header", ["simple", "join"])
@pytest.mark.parametrize("failing", [False, True])
def test_parts_of_a_chord_are_counted_after_their_results_are_stored(
    site: Any, monkeypatch: pytest.MonkeyPatch, header: str, failing: bool
) -> None:
    """Once for each, and the body of the chord is sent once."""
    here = site(task_always_eager=True, task_store_eager_result=True)
    called: list[Any] = []
    counted: list[Any] = []

    @here.app.task(name="unit.collect")
    def collect(values: Any) -> None:
        called.append(values)

    count = RedisBackend.on_chord_part_return

    def on_chord_part_return(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append((request.id, *here.states(0, 1, 2)))
        return count(self, request, *args, **kwargs)

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
    stored = ["SUCCESS", "FAILURE" if failing else "SUCCESS", "SUCCESS"]
    # A failure that is awaited is stored alone.
    before = ["SUCCESS", "PENDING" if failing else "SUCCESS", "SUCCESS"]
    assert counted == [("id-0", *before), ("id-1", *stored), ("id-2", *stored)]
    assert called == ([] if failing else [[{"way": way} for way in ways]])
    if failing:
        assert here.backend.get_state("collected") == "FAILURE"


@pytest.mark.redis
def test_what_follows_keeps_its_order(site: Any, sent: list[str]) -> None:
    """Callbacks and chains are sent before a result is stored, errbacks called after a failure."""
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
        ("errback", "id-1", "FAILURE", "FAILURE", "PENDING"),
        ("callback", "chained", "SUCCESS", "PENDING"),
    ]
    ends = ["SUCCESS", "FAILURE", "SUCCESS", "FAILURE", "FAILURE", "SUCCESS"]
    assert here.states(*range(6)) == ends
    assert here.backend.get_state("following") == "FAILURE"
