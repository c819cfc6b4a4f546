"""The results of many calls are those of a ResultSet, and take little memory until then."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery.result import AsyncResult, ResultSet
from kombu.utils.uuid import uuid

from celery_batches.client.results import SentIds, SentResults
from kit.sending import ids_of


def test_results_are_in_order_of_the_calls(deployment: Any) -> None:
    """With ids that Celery makes, and with those of the caller."""
    calls: list[Any] = [((0,),), {"args": (1,), "task_id": "mine"}, ((2,),)]
    results = deployment.task.apply_async_many(calls)
    assert isinstance(results, ResultSet)
    assert len(results) == 3
    assert [result.id for result in results] == ids_of(deployment.take())
    assert results[1].id == "mine"
    assert {type(result) for result in results} == {type(deployment.task.AsyncResult("x"))}
    assert results[0] is results.results[0]
    assert len(results) == 3


def test_results_are_waited_for_as_any(deployment: Any) -> None:
    """get, ready, then, add and iteration, as of a ResultSet that Celery makes."""
    app = deployment.app
    results = deployment.task.delay_many([(n,) for n in range(3)])
    assert not results.ready()
    for number, message in enumerate(deployment.take()):
        app.backend.store_result(message.headers["id"], number, "SUCCESS")
    results.add(app.AsyncResult("other"))
    assert [result.id for result in results][3] == "other"
    assert len(results) == 4
    assert results == ResultSet(list(results), app=app)
    app.backend.store_result("other", 3, "SUCCESS")
    assert results.get(timeout=5) == [0, 1, 2, 3]
    assert results.successful()


@pytest.mark.parametrize("ignored", [True, False])
def test_results_that_are_ignored(deployment: Any, ignored: bool) -> None:
    """For all calls, or for one of them."""
    calls: list[Any] = [((0,),), {"args": (1,), "ignore_result": not ignored}, ((2,),)]
    results = deployment.task.apply_async_many(calls, ignore_result=ignored)
    assert [result.ignored for result in results] == [ignored, not ignored, ignored]
    deployment.take()


def test_no_calls(deployment: Any) -> None:
    results = deployment.task.delay_many([])
    assert len(results) == 0
    assert list(results) == []


def test_results_can_be_pickled(deployment: Any) -> None:
    results = deployment.task.delay_many([(1,), (2,)])
    copy = pickle.loads(pickle.dumps(results))
    assert [result.id for result in copy] == [result.id for result in results]
    deployment.take()


def test_an_id_takes_16_bytes(deploy: Any) -> None:
    """It is given out as it was."""
    ids = SentIds(deploy("memory").task, ignored=False)
    names = [uuid() for _ in range(1000)]
    for name in names:
        ids.add(name)
    assert len(ids._packed) == 16_000
    assert list(ids) == names
    results = SentResults(ids)
    assert len(results) == 1000
    assert "_results" not in vars(results)
    assert isinstance(results[999], AsyncResult)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        results.nonsense  # noqa: B018
