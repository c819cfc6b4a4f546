"""How requests have ended is read from the result backend: many at a time, and not for ever."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.backends.database.session import ResultModelBase
from sqlalchemy import create_engine

from celery_batches.backends.state_lookup import CHUNK, MAX_ATTEMPTS, look_up_ends
from kit.sites import NOW

IDS = ["done", "failed", "retried", "started", "unknown"]


@pytest.fixture(params=["cache+memory://", "redis", "database", "file"])
def backend(request: pytest.FixtureRequest, app: Celery, tmp_path: Any) -> Any:
    url = request.param
    if url == "redis":
        url = request.getfixturevalue("redis_url")
    elif url == "database":
        path = f"sqlite:///{tmp_path / 'results.db'}"
        engine = create_engine(path)
        ResultModelBase.metadata.create_all(engine)
        engine.dispose()
        url = f"db+{path}"
    elif url == "file":
        url = f"file://{tmp_path}"
    app.conf.result_backend = url
    app.conf.result_expires = 60
    backend = app.backend
    yield backend
    if request.param == "redis":
        for task_id in [*IDS, *map(str, range(2 * CHUNK))]:
            backend.forget(task_id)
        backend.client.close()


def test_states_that_are_no_end_are_left_out(backend: Any) -> None:
    backend.store_result("done", {"a": 1}, "SUCCESS")
    backend.store_result("failed", KeyError("why"), "FAILURE", "its traceback")
    backend.store_result("retried", ValueError("later"), "RETRY", "its traceback")
    backend.store_result("started", {}, "STARTED")
    ends = dict(look_up_ends(backend, IDS))
    assert set(ends) == {"done", "failed", "retried"}
    assert ends.pop("retried").state == "RETRY"
    assert (ends["done"].state, ends["done"].result) == ("SUCCESS", {"a": 1})
    assert ends["failed"].state == "FAILURE"
    assert isinstance(ends["failed"].result, KeyError)
    assert ends["failed"].traceback == "its traceback"
    assert {end.date_done for end in ends.values()} == {NOW}


def test_nothing_is_kept_in_the_cache_of_the_backend(backend: Any) -> None:
    """Whoever asks later must not get what was there then."""
    backend.store_result("done", 1, "SUCCESS")
    assert dict(look_up_ends(backend, IDS))
    assert not backend.is_cached("done")


def test_a_large_batch_is_read_in_parts(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [str(number) for number in range(2 * CHUNK)]
    for task_id in ids:
        app.backend.store_result(task_id, 1, "SUCCESS")
    sizes: list[int] = []
    mget = type(app.backend).mget
    monkeypatch.setattr(
        type(app.backend), "mget", lambda self, keys: sizes.append(len(keys)) or mget(self, keys)
    )
    assert sorted(task_id for task_id, _ in look_up_ends(app.backend, ids)) == sorted(ids)
    assert sizes == [CHUNK, CHUNK]


@pytest.mark.parametrize("url", ["rpc://", "disabled://"])
def test_a_backend_that_keeps_no_states_is_not_asked(
    app: Celery, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.result_backend = url
    assert not list(look_up_ends(app.backend, IDS))
    assert not caplog.records


def test_a_backend_that_is_away_is_asked_a_few_times(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not hold up the worker, also if Celery retries for ever otherwise."""
    app.conf.result_backend_always_retry = True
    attempts: list[str] = []

    def away(name: str) -> Any:
        def read(self: Any, *args: Any) -> None:
            attempts.append(name)
            raise ConnectionError("away")

        return read

    for name in ("mget", "get"):
        monkeypatch.setattr(type(app.backend), name, away(name))
    assert not list(look_up_ends(app.backend, IDS))
    assert attempts == ["mget", *["get"] * MAX_ATTEMPTS]
    (record,) = caplog.records
    assert "Cannot look up the states of a batch: ConnectionError: away" in record.getMessage()


def test_a_connection_that_was_closed_is_no_reason_to_give_up(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.backend.store_result("done", 1, "SUCCESS")

    def closed(self: Any, keys: Any) -> None:
        raise ConnectionError("closed")

    monkeypatch.setattr(type(app.backend), "mget", closed)
    assert list(dict(look_up_ends(app.backend, IDS))) == ["done"]
