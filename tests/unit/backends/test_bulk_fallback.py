"""Backends that are not quite Celery's get states one by one, by their own methods."""

from __future__ import annotations

from typing import Any

import pytest
from celery.backends.redis import RedisBackend, SentinelBackend

from celery_batches import SimpleRequest
from celery_batches.backends.bulk import bulk_store_of, store_in_bulk
from celery_batches.backends.state import State
from celery_batches.core.shortcuts import SHORTCUTS
from celery_batches.pool.marking import intercept_marks


def do_nothing(*args: Any, **kwargs: Any) -> None:
    pass


OVERRIDDEN = [
    *("mark_as_done", "mark_as_failure", "on_chord_part_return", "store_result", "_store_result"),
    *("encode_result", "encode", "get", "mget", "set", "_set", "ensure", "_get_result_meta"),
]


@pytest.fixture
def redis_backend(app: Any) -> Any:
    """A Redis backend that is not connected."""
    return RedisBackend(app=app, url="redis://127.0.0.1:1/0")


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_backend_with_a_method_of_its_own_is_left_alone(
    redis_backend: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Overridden in a subclass or in one instance, it gets its states one by one."""
    assert bulk_store_of(redis_backend)
    own = type("Own", (RedisBackend,), {name: do_nothing})
    assert bulk_store_of(own(app=redis_backend.app, url="redis://127.0.0.1:1/0")) is None
    monkeypatch.setattr(redis_backend, name, do_nothing)
    assert bulk_store_of(redis_backend) is None


def test_backends_that_store_as_celery_does(redis_backend: Any) -> None:
    """What a subclass connects to and how, or that it is watched, changes nothing."""
    own = type("Own", (RedisBackend,), {"_get_pool": do_nothing, "as_uri": do_nothing})
    assert bulk_store_of(own(app=redis_backend.app, url="redis://127.0.0.1:1/0"))
    assert bulk_store_of(SentinelBackend(app=redis_backend.app, url="sentinel://127.0.0.1:1/0"))
    intercept_marks(redis_backend)
    assert bulk_store_of(redis_backend)


@pytest.mark.parametrize("backend", ["cache+memory://", "rpc://", "disabled://"])
def test_other_backends_get_states_one_by_one(app: Any, backend: str) -> None:
    app.conf.result_backend = backend
    assert bulk_store_of(app.backend) is None
    assert store_in_bulk(app.backend, [None, None]) == [False, False]


def test_a_client_of_another_kind_gets_states_one_by_one(
    redis_backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as that of a cluster, which has no transactions over all of its nodes."""
    redis_backend.client = object()
    request = SimpleRequest("id-0", "unit.click", (), {}, None, "w@h")
    assert store_in_bulk(redis_backend, [State(request, 1, "SUCCESS")] * 2) == [False, False]
    assert caplog.records == []


@pytest.mark.redis
def test_a_backend_of_ones_own_is_told_of_each_result(site: Any, sent: list[str]) -> None:
    """One by one, by its own methods, first of what is done."""
    here = site()
    told: list[str] = []

    class Own(RedisBackend):
        def store_result(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
            told.append(task_id)
            return super().store_result(task_id, *args, **kwargs)

    connected = here.backend
    here.task.backend = Own(app=here.app, url=connected.url)
    here.run(here.received("done", "fail", "done"))
    here.task.backend.client.close()
    assert told == ["id-0", "id-2", "id-1"]
    assert "MGET" not in sent
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]


def test_the_switch(redis_backend: Any) -> None:
    """Without the shortcut Celery stores each state."""
    redis_backend.app.conf.batches_shortcuts = SHORTCUTS - {"bulk_results"}
    assert bulk_store_of(redis_backend) is None
    redis_backend.app.conf.batches_shortcuts = {"bulk_results"}
    assert bulk_store_of(redis_backend)


@pytest.mark.redis
@pytest.mark.parametrize("setting", [False, True])
def test_the_same_is_stored_with_and_without_the_shortcut(
    site: Any, sent: list[str], setting: bool
) -> None:
    here = site(batches_shortcuts=setting)
    here.backend.get("connected")
    sent.clear()
    reports = here.run(here.received("done", "fail", "function"))
    assert ("MGET" in sent) is setting
    assert [failed for failed, _ in reports] == [False, True, True]
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "FAILURE"]
    assert len(here.published()) == 3


@pytest.mark.redis
def test_a_celery_that_stores_with_other_commands(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for the client has none but those that are known: Celery stores each state."""

    def _set(self: Any, key: Any, value: Any, *_: Any) -> None:
        self.client.psetex(key, 60_000, value)

    monkeypatch.setattr(RedisBackend, "_set", _set)
    here = site()
    here.run(here.received("done", "fail"))
    assert here.states(0, 1) == ["SUCCESS", "FAILURE"]
