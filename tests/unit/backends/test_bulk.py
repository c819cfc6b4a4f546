"""Storing a batch's states at once: as Celery stores each, with fewer round trips."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from os import getpid
from typing import Any

import pytest
import redis
from celery import Celery, states
from celery.backends import base
from celery.backends.database import DatabaseBackend
from celery.backends.database.session import ResultModelBase
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.result import GroupResult
from kombu.utils.uuid import uuid
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from unit.support import make_request, protocol_2, task_context

from celery_batches import Batches, SimpleRequest
from celery_batches.backends import bulk
from celery_batches.backends.bulk import State, store_at_once, way_into
from celery_batches.pool.marking import watch
from celery_batches.pool.trace import trace_batch

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)

#: In a transaction, and without another connection being made.
ROUND_TRIPS = ["MGET", "MULTI"]


class Frozen(datetime):
    """What Celery before 5.4 asks for the time."""

    @classmethod
    def utcnow(cls) -> datetime:
        return NOW.replace(tzinfo=None)


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "datetime", Frozen, raising=False)
    monkeypatch.setattr(Celery, "now", lambda self: NOW)


class Failure(Exception):
    pass


class Site:
    """A batch task, whose calls say by their argument how they end."""

    def __init__(self, app: Any, backend: str, **config: Any) -> None:
        self.app = app
        self.prefix = f"test-{uuid()}_"
        app.conf.result_backend = backend
        app.conf.result_backend_transport_options = {
            **config.pop("transport", {}),
            "global_keyprefix": self.prefix,
        }
        app.conf.result_accept_content = ["json", "pickle"]
        app.conf.update(config)
        self.body: Callable[[Any], None] = self.mark

        @app.task(name="unit.click", base=Batches, flush_every=100)
        def click(requests: Any) -> None:
            self.body(requests)

        self.task = click

    @staticmethod
    def mark(requests: Any) -> None:
        for request in requests:
            (way,) = request.args
            if way == "fail":
                request.mark_as_failure(Failure("no", 1))
            elif way == "function":
                request.mark_as_done(lambda: None)
            elif way != "nothing":
                request.mark_as_done({"way": way})

    @property
    def backend(self) -> Any:
        return self.app.backend

    def received(self, *calls: Any, **common: Any) -> list[Any]:
        """What a worker makes of such calls, each of which may have options of its own."""
        made = []
        for n, call in enumerate(calls):
            way, options = (call, {}) if isinstance(call, str) else call
            options = {"task_id": f"id-{n}", **common, **options}
            message = protocol_2(self.app, name="unit.click", args=[way], **options)
            made.append(make_request(self.app, self.task, message))
        return made

    def run(self, messages: list[Any]) -> list[tuple[bool, Any]]:
        requests = [SimpleRequest.from_request(message) for message in messages]
        broken, reports, _ = trace_batch("unit.click", "batch", requests, "size", "w@h")
        assert broken is False
        return reports

    def run_alone(self, messages: list[Any], reports: list[tuple[bool, Any]]) -> None:
        """Do as Celery does for ordinary tasks that end like this."""
        for message, (failed, report) in zip(messages, reports, strict=True):
            request = task_context(message)
            (way,) = request.args
            if failed:
                self.backend.mark_as_failure(
                    request.id,
                    report.exception.exc,
                    report.traceback,
                    request=request,
                    store_result=not request.ignore_result
                    or self.task.store_errors_even_if_ignored,
                )
            elif way != "nothing":
                self.backend.mark_as_done(request.id, {"way": way}, request)


class RedisSite(Site):
    def __init__(self, app: Any, url: str, **config: Any) -> None:
        super().__init__(app, url, **config)
        self.client = redis.Redis.from_url(url)
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)
        self.pubsub.psubscribe(f"{self.prefix}*")
        # Once this has come, so will all that follow.
        self.published()

    def close(self) -> None:
        self.clear()
        self.pubsub.close()
        self.client.close()

    def clear(self) -> None:
        for key in self.keys():
            self.client.delete(key)

    def keys(self) -> list[bytes]:
        return sorted(self.client.scan_iter(f"{self.prefix}*", count=10_000))

    def stored(self) -> dict[bytes, tuple[bytes, int]]:
        """The value of each key, and the seconds it is kept."""
        return {key: (self.client.get(key), self.client.ttl(key)) for key in self.keys()}

    def published(self) -> list[tuple[bytes, bytes]]:
        """What was published since the last time."""
        end = self.prefix + uuid()
        found: list[tuple[bytes, bytes]] = []
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            self.client.publish(end, "")
            while message := self.pubsub.get_message(timeout=1):
                if message["channel"].decode() == end:
                    return found
                if message["data"]:
                    found.append((message["channel"], message["data"]))
        raise AssertionError("nothing is published")

    def states(self, *numbers: int) -> list[str]:
        return [self.backend.get_task_meta(f"id-{n}", cache=False)["status"] for n in numbers]


@pytest.fixture
def site(app: Any, redis_url: str) -> Iterator[Callable[..., RedisSite]]:
    made: list[RedisSite] = []

    def make(**config: Any) -> RedisSite:
        made.append(RedisSite(app, redis_url, **config))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.backend.client.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first command of everything that is sent to Redis: each is a round trip."""
    sent: list[str] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        parts = [command] if isinstance(command, bytes) else command
        sent.append(b"".join(parts).split(b"\r\n", 3)[2].decode())
        send(self, command, *args, **kwargs)

    monkeypatch.setattr(
        redis.connection.AbstractConnection, "send_packed_command", send_packed_command
    )
    return sent


CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "extended": {"result_extended": True},
    "pickle": {"result_serializer": "pickle"},
    "compressed": {"result_compression": "gzip", "result_extended": True},
    "expires 0": {"result_expires": 0},
    "never expires": {"result_expires": None},
    "expires": {"result_expires": 3600, "result_failure_expires": 1800},
}

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in a group": {"group_id": "g", "group_index": 1, "parent_id": "p", "root_id": "r"},
    "stamped": {"stamped_headers": ["customer"], "customer": ["ACME"]},
    "ignored": {"ignore_result": True},
}


def same(stored: dict[bytes, tuple[bytes, int]]) -> dict[bytes, tuple[bytes, Any]]:
    """The time goes by while the keys are read."""
    return {key: (value, pytest.approx(ttl, abs=90)) for key, (value, ttl) in stored.items()}


@pytest.mark.redis
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_is_stored_and_published_as_by_celery(
    site: Any, sent: list[str], config: str, call: str
) -> None:
    """Keys, bytes, expiry and messages are those of ordinary tasks that end in the same way."""
    here = site(**CONFIGS[config])
    here.backend.get("connected")
    messages = here.received("done", "fail", "other", "nothing", "fail", "done", **CALLS[call])
    if call == "ignored":
        here.task.store_errors_even_if_ignored = True
    sent.clear()
    reports = here.run(messages)
    assert sent == ROUND_TRIPS
    at_once, told = here.stored(), here.published()
    here.clear()
    here.run_alone(messages, reports)
    assert same(here.stored()) == at_once
    assert here.published() == told
    numbers = [1, 4] if call == "ignored" else [0, 1, 2, 4, 5]
    task_keys = [here.backend.get_key_for_task(f"id-{n}") for n in numbers]
    assert list(at_once) == [channel for channel, _ in told] == task_keys


@pytest.mark.redis
@pytest.mark.parametrize("size", [2, 100, 1000])
def test_a_batch_costs_two_round_trips(site: Any, sent: list[str], size: int) -> None:
    here = site()
    messages = here.received(*["done"] * size)
    here.backend.get("connected")
    sent.clear()
    here.run(messages)
    assert sent == ROUND_TRIPS
    assert len(here.keys()) == len(here.published()) == size


@pytest.mark.redis
def test_a_body_that_raises_costs_two_round_trips(site: Any, sent: list[str]) -> None:
    """The failure of every request is stored like a result."""
    here = site()

    def body(requests: Any) -> None:
        raise Failure("body")

    here.body = body
    messages = here.received(*["done"] * 5)
    here.backend.get("connected")
    sent.clear()
    reports = here.run(messages)
    assert sent == ROUND_TRIPS
    at_once = here.stored()
    here.clear()
    here.run_alone(messages, reports)
    assert same(here.stored()) == at_once


@pytest.mark.redis
def test_nothing_is_sent_when_no_result_is_wanted(site: Any, sent: list[str]) -> None:
    here = site()
    sent.clear()
    here.run(here.received("done", "fail", "done", "fail", ignore_result=True))
    here.run(here.received(*["nothing"] * 5))
    assert sent == []


@pytest.mark.redis
def test_track_started_costs_two_round_trips(site: Any, sent: list[str]) -> None:
    """That requests run is stored at once, before the body."""
    here = site(result_extended=True)
    here.task.track_started = True
    during: list[Any] = []

    def body(requests: Any) -> None:
        during.extend([list(sent), here.stored()])
        sent.clear()
        here.mark(requests)

    here.body = body
    messages = here.received(*["done"] * 5)
    here.backend.get("connected")
    sent.clear()
    here.run(messages)
    assert during[0] == sent == ROUND_TRIPS
    assert here.states(*range(5)) == ["SUCCESS"] * 5
    here.clear()
    for message in messages:
        here.backend.store_result(
            message.id,
            {"pid": getpid(), "hostname": "w@h"},
            states.STARTED,
            request=task_context(message),
        )
    assert same(here.stored()) == during[1]


@pytest.mark.redis
def test_a_result_is_not_overwritten(site: Any) -> None:
    """A request that was done before keeps its result; that of any other state is stored."""
    here = site()
    here.backend.mark_as_done("id-0", "before")
    here.backend.mark_as_failure("id-1", Failure("before"))
    here.backend.store_result("id-2", None, states.STARTED)
    before = here.stored()
    here.published()
    here.run(here.received("fail", "done", "done", "done"))
    assert here.states(0, 1, 2, 3) == ["SUCCESS"] * 4
    key = here.backend.get_key_for_task("id-0")
    assert here.stored()[key][0] == before[key][0]
    assert len(here.published()) == 3


@pytest.mark.redis
def test_an_id_that_comes_twice(site: Any) -> None:
    """The first result of an id stays; a failure before it does not."""
    here = site()
    messages = here.received("fail", "done", "other", "fail", task_id="id-0")
    reports = here.run(messages)
    at_once, told = here.stored(), here.published()
    here.clear()
    here.run_alone(messages, reports)
    assert same(here.stored()) == at_once
    assert here.published() == told
    assert here.backend.get_result("id-0") == {"way": "done"}
    assert len(told) == 2


@pytest.mark.redis
def test_a_result_that_cannot_be_encoded_fails_alone(
    site: Any, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its neighbours are stored at once all the same."""
    here = site()
    messages = here.received("done", "function", "done")
    here.backend.get("connected")
    sent.clear()
    reports = here.run(messages)
    assert [failed for failed, _ in reports] == [False, True, False]
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert sent[:4] == [*ROUND_TRIPS, "GET", "GET"]
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


# What comes before and after.


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
    assert counted == [(f"id-{n}", *stored) for n in range(3)]
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


# Large results, and connections that are lost.


@pytest.mark.redis
def test_large_results_go_in_pieces(
    site: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of a batch's results are held at once."""
    here = site()
    one = len(here.backend.encode({"way": "done"}))
    monkeypatch.setattr(bulk, "ENOUGH", 2 * one)
    messages = here.received(*["done"] * 5)
    here.backend.get("connected")
    sent.clear()
    here.run(messages)
    assert sent[:2] == ROUND_TRIPS
    assert set(sent[2:]) == {"MULTI"}
    assert 3 <= len(sent) <= 6
    assert len(here.keys()) == len(here.published()) == 5


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
    (record,) = [r for r in caplog.records if r.name.startswith("celery_batches")]
    assert record.levelname == "WARNING"
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


# Backends that are not quite Celery's.


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
    assert way_into(redis_backend)
    own = type("Own", (RedisBackend,), {name: do_nothing})
    assert way_into(own(app=redis_backend.app, url="redis://127.0.0.1:1/0")) is None
    monkeypatch.setattr(redis_backend, name, do_nothing)
    assert way_into(redis_backend) is None


def test_backends_that_store_as_celery_does(redis_backend: Any) -> None:
    """What a subclass connects to and how, or that it is watched, changes nothing."""
    own = type("Own", (RedisBackend,), {"_get_pool": do_nothing, "as_uri": do_nothing})
    assert way_into(own(app=redis_backend.app, url="redis://127.0.0.1:1/0"))
    assert way_into(SentinelBackend(app=redis_backend.app, url="sentinel://127.0.0.1:1/0"))
    watch(redis_backend)
    assert way_into(redis_backend)


@pytest.mark.parametrize("backend", ["cache+memory://", "rpc://", "disabled://"])
def test_other_backends_get_states_one_by_one(app: Any, backend: str) -> None:
    app.conf.result_backend = backend
    assert way_into(app.backend) is None
    assert store_at_once(app.backend, [None, None]) == [False, False]


def test_a_client_of_another_kind_gets_states_one_by_one(
    redis_backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as that of a cluster, which has no transactions over all of its nodes."""
    redis_backend.client = object()
    request = SimpleRequest("id-0", "unit.click", (), {}, None, "w@h")
    assert store_at_once(redis_backend, [State(request, 1, "SUCCESS")] * 2) == [False, False]
    assert caplog.records == []


@pytest.mark.redis
def test_a_backend_of_ones_own_is_told_of_each_result(site: Any, sent: list[str]) -> None:
    """One by one, by its own methods."""
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
    assert told == ["id-0", "id-1", "id-2"]
    assert "MGET" not in sent
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]


# Databases.


class DatabaseSite(Site):
    def __init__(self, app: Any, path: Any, **config: Any) -> None:
        super().__init__(app, f"db+sqlite:///{path}", **config)
        self.path = path
        # Celery 5.3 makes them in the first database of a process only.
        engine = create_engine(f"sqlite:///{path}")
        ResultModelBase.metadata.create_all(engine)
        engine.dispose()
        # Celery 5.7 looks whether they lack a column.
        self.backend.ResultSession().close()

    def rows(self) -> list[dict[str, Any]]:
        """All that is in the table of results, but for the numbers of the rows."""
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute("SELECT * FROM celery_taskmeta ORDER BY task_id")
            names = [column[0] for column in found.description]
            rows = [dict(zip(names, row, strict=True)) for row in found]
        for row in rows:
            del row["id"]
        return rows

    def clear(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM celery_taskmeta")


@pytest.fixture
def database(app: Any, tmp_path: Any) -> Callable[..., DatabaseSite]:
    return lambda **config: DatabaseSite(app, tmp_path / f"{uuid()}.db", **config)


@pytest.fixture
def commits() -> Iterator[list[str]]:
    """What ends the transactions of all databases."""
    seen: list[str] = []

    def committed(connection: Any) -> None:
        seen.append("commit")

    def rolled_back(connection: Any) -> None:
        seen.append("rollback")

    event.listen(Engine, "commit", committed)
    event.listen(Engine, "rollback", rolled_back)
    yield seen
    event.remove(Engine, "commit", committed)
    event.remove(Engine, "rollback", rolled_back)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("config", ["default", "extended", "pickle"])
def test_the_same_rows_as_celery_in_one_transaction(
    database: Any, commits: list[str], config: str, call: str
) -> None:
    """A batch is one transaction, and each row as that of an ordinary task."""
    here = database(**CONFIGS[config])
    messages = here.received("done", "fail", "other", "nothing", "fail", "done", **CALLS[call])
    if call == "ignored":
        here.task.store_errors_even_if_ignored = True
    commits.clear()
    reports = here.run(messages)
    assert commits == ["commit"]
    at_once = here.rows()
    here.clear()
    here.run_alone(messages, reports)
    assert here.rows() == at_once
    assert len(at_once) == (2 if call == "ignored" else 5)


def test_rows_that_are_there_already(database: Any, commits: list[str]) -> None:
    """They are treated as the installed Celery does, also when an id comes twice."""
    here = database()
    calls = ["fail", "done", "done", ("fail", {"task_id": "id-1"}), ("other", {"task_id": "id-0"})]
    messages = here.received(*calls)
    rows = []
    reports: Any = None
    for alone in (False, True):
        here.backend.mark_as_done("id-0", "before")
        here.backend.store_result("id-2", None, states.STARTED)
        commits.clear()
        if alone:
            here.run_alone(messages, reports)
        else:
            reports = here.run(messages)
            assert commits == ["commit"]
        rows.append(here.rows())
        here.clear()
        for row in rows[-1]:
            del row["date_done"]  # Of the database's own clock, where nothing else has changed.
    assert rows[0] == rows[1]


@pytest.mark.parametrize("why", ["encode", "database"])
def test_a_row_that_cannot_be_stored(
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    commits: list[str],
    why: str,
) -> None:
    """The transaction is undone, then the states are stored one by one: no other is lost."""
    here = database()
    update = DatabaseBackend._update_result
    left = [1]

    def update_or_fail(self: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        if task.task_id == "id-1" and why == "database" and left:
            left.pop()
            raise OperationalError("UPDATE", {}, Exception("locked"))
        return update(self, task, *args, **kwargs)

    monkeypatch.setattr(DatabaseBackend, "_update_result", update_or_fail)
    commits.clear()
    here.run(here.received("done", "function" if why == "encode" else "done", "done"))
    assert commits[0] == "rollback"
    rows = here.rows()
    assert [row["task_id"] for row in rows] == ["id-0", "id-1", "id-2"]
    failing = "FAILURE" if why == "encode" else "SUCCESS"
    assert [row["status"] for row in rows] == ["SUCCESS", failing, "SUCCESS"]
    if why == "database" and hasattr(base.Backend, "_ensure_retryable"):
        # Nothing was tried again in a transaction that is lost.
        assert [record.name for record in caplog.records] == ["celery_batches.backends.bulk"]
