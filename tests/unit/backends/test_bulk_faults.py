"""Large results, connections that are lost and a Redis that refuses lose no state."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import redis
from celery.backends.redis import RedisBackend

from celery_batches.backends import redis_bulk
from kit.sites import ROUND_TRIPS


@pytest.mark.redis
def test_large_results_go_in_pieces(
    site: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of a batch's results are held at once."""
    here = site()
    one = len(here.backend.encode({"way": "done"}))
    monkeypatch.setattr(redis_bulk, "MAX_PIPELINE_BYTES", 2 * one)
    messages = here.received(*["done"] * 5)
    here.backend.get("connected")
    sent.clear()
    here.run(messages)
    assert sent[:2] == ROUND_TRIPS
    assert set(sent[2:]) == {"MULTI"}
    assert 3 <= len(sent) <= 6
    assert len(here.keys()) == len(here.published()) == 5


@pytest.mark.redis
def test_what_has_been_sent_is_not_held(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the results of a batch are stored, few of them are in memory a second time."""
    here, size = site(), 100_000
    monkeypatch.setattr(redis_bulk, "MAX_PIPELINE_BYTES", 4 * size)
    large = "x" * size

    def body(requests: Any) -> None:
        for request in requests:
            request.mark_as_done(large)
        tracemalloc.start()

    here.body = body
    messages = here.received(*["done"] * 100)
    here.backend.get("connected")
    try:
        here.run(messages)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert here.states(0, 99) == ["SUCCESS"] * 2
    assert peak < 50 * size


@pytest.mark.redis
def test_an_id_that_comes_again_after_it_was_sent(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first result of an id stays, whether it is still to be sent or in Redis."""
    monkeypatch.setattr(redis_bulk, "MAX_PIPELINE_BYTES", 1)
    here = site()
    here.run(here.received("fail", "done", "other", task_id="id-0"))
    assert here.backend.get_result("id-0") == {"way": "done"}
    assert len(here.published()) == 2


class Faulty:
    """Loses the connection when a batch's transaction is sent, before or after Redis gets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int, *, after: bool) -> None:
        self.left = times
        execute = redis.client.Pipeline.execute

        def execute_or_fail(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            if len(pipeline.command_stack) > 2 and self.left:
                self.left -= 1
                if after:
                    execute(pipeline, *args, **kwargs)
                raise redis.ConnectionError("lost")
            return execute(pipeline, *args, **kwargs)

        monkeypatch.setattr(redis.client.Pipeline, "execute", execute_or_fail)


@pytest.mark.redis
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("times", [1, 100])
def test_a_lost_connection_loses_no_result(
    site: Any, monkeypatch: pytest.MonkeyPatch, times: int, after: bool
) -> None:
    """It is tried again as Celery would; and then each result by itself."""
    policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    here = site(transport={"retry_policy": policy})
    faulty = Faulty(monkeypatch, times, after=after)
    reports = here.run(here.received("done", "fail", "done"))
    assert [failed for failed, _ in reports] == [False, True, False]
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]
    told = {channel for channel, _ in here.published()}
    assert told == set(here.keys())
    # Once, and as often as the policy says.
    assert faulty.left == (0 if times == 1 else 100 - 3)


@pytest.mark.redis
@pytest.mark.skipif(
    "exception_safe_to_retry" not in vars(RedisBackend), reason="Celery does not do it here"
)
def test_redis_that_is_away_is_waited_for(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With result_backend_always_retry, as for a single result."""
    here = site(result_backend_always_retry=True, result_backend_base_sleep_between_retries_ms=1)
    away = ["mget", "get", "get"]
    for name in ("mget", "get"):
        command = getattr(redis.Redis, name)

        def lost(self: Any, *args: Any, _name: str = name, _command: Any = command) -> Any:
            if _name in away:
                away.remove(_name)
                raise redis.ConnectionError("away")
            return _command(self, *args)

        monkeypatch.setattr(redis.Redis, name, lost)
    reports = here.run(here.received("done", "fail", "done"))
    assert away == []
    assert [failed for failed, _ in reports] == [False, True, False]
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]


@pytest.mark.redis
def test_redis_that_will_not_read_many_at_once(
    site: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What Redis refuses for all is done for each, and said in the log."""
    here = site()

    def mget(self: Any, keys: Any) -> Any:
        raise redis.ResponseError("no permission")

    monkeypatch.setattr(redis.Redis, "mget", mget)
    here.run(here.received("done", "fail", "done"))
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert len(here.published()) == 3
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.name.startswith("celery_batches")
    assert "3 states" in record.getMessage()
    assert "no permission" in record.getMessage()


@pytest.mark.redis
def test_redis_that_refuses_a_transaction(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it was done, each state is stored, and told to who waits for it."""
    here = site(result_expires=100)
    monkeypatch.setattr(here.backend, "expires", -1)
    reports = here.run(here.received("done", "done"))
    assert [failed for failed, _ in reports] == [True, True]
    monkeypatch.setattr(here.backend, "expires", 100)
    reports = here.run(here.received("done", "done"))
    assert here.states(0, 1) == ["SUCCESS"] * 2
