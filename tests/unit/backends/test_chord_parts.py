"""In Redis a chord part is stored and counted in one transaction, by Celery's own code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import states
from celery.backends import redis as celery_redis
from celery.backends.redis import RedisBackend
from celery.exceptions import WorkerLostError
from celery.result import GroupResult
from kombu.utils.uuid import uuid

from celery_batches.backends.chord_parts import ChordParts
from celery_batches.compat import counts_parts_once
from celery_batches.core.shortcuts import SHORTCUTS
from kit.losses import Killed, kill, names_of
from kit.requests import task_context
from kit.sites import CONFIGS

pytestmark = pytest.mark.redis

COUNTS = ["EVAL"] if counts_parts_once(object.__new__(RedisBackend)) else ["ZADD", "ZCOUNT"]
#: A state and a count.
PART = ["MULTI", "SETEX", "PUBLISH", *COUNTS]


class Chord:
    """A chord of a batch task, whose body is called in this process."""

    def __init__(self, here: Any, size: int = 3, *, complex: bool = False) -> None:
        self.here, self.size = here, size
        self.results: list[Any] = []
        here.app.conf.task_always_eager = here.app.conf.task_store_eager_result = True

        @here.app.task(name="unit.collect")
        def collect(values: Any) -> None:
            self.results.append(values)

        self.body = collect.s().set(task_id="collected", chord_size=size)
        self.body["chord_size"] = size
        if complex:
            parts = [here.app.AsyncResult(f"id-{n}") for n in range(size)]
            GroupResult("g", parts, app=here.app).save(here.backend)

    def received(self, *ways: str) -> list[Any]:
        self.here.backend.set_chord_size("g", self.size)
        calls = [(way, {"group_index": index}) for index, way in enumerate(ways)]
        return list(self.here.received(*calls, group_id="g", chord=self.body))

    @property
    def counted(self) -> int:
        """How many parts are counted; all, if its body is called."""
        key = self.here.backend.get_key_for_group("g", ".j")
        return self.size if self.results else int(self.here.client.zcard(key))

    @property
    def done(self) -> int:
        """How many parts have a result that says so."""
        return self.here.states(*range(self.size)).count(states.SUCCESS)


def body(*ways: str) -> list[dict[str, str]]:
    return [{"way": way} for way in ways]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The commands of everything that is sent to Redis: each list is a round trip."""
    sent: list[list[str]] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        data = command if isinstance(command, bytes) else b"".join(command)
        names = list(names_of(data))
        if "PUNSUBSCRIBE" not in names:  # One that is left from another test says good-bye.
            sent.append(names)
        send(self, command, *args, **kwargs)

    monkeypatch.setattr(
        redis.connection.AbstractConnection, "send_packed_command", send_packed_command
    )
    return sent


@pytest.mark.parametrize("complex", [False, True])
def test_a_part_is_stored_and_counted_in_one_transaction(
    site: Any, commands: Any, complex: bool
) -> None:
    """What is stored of all is read at once, and then each part is one round trip."""
    here = site()
    chord = Chord(here, 4, complex=complex)
    messages = chord.received("first", "second", "third")
    here.backend.get("connected")
    commands.clear()
    here.run(messages)
    assert commands[0] == ["MGET"]
    assert [sent[: len(PART)] for sent in commands[1:]] == [PART] * 3
    assert all(sent[-1] == "EXEC" for sent in commands[1:])
    assert chord.done == chord.counted == 3
    here.run(
        here.received(
            ("last", {"task_id": "id-3", "group_index": 3}), group_id="g", chord=chord.body
        )
    )
    assert chord.results == [body("first", "second", "third", "last")]


def test_a_part_that_the_body_stores_itself(site: Any, commands: Any) -> None:
    """In the way of 0.11: one transaction, when the body says so."""
    here = site()
    chord = Chord(here)
    seen: list[tuple[int, int]] = []

    def mark(requests: Any) -> None:
        for request in requests:
            here.app.backend.mark_as_done(request.id, {"way": request.args[0]}, request=request)
            seen.append((chord.done, chord.counted))

    here.body = mark
    messages = chord.received("first", "second", "third")
    commands.clear()
    here.run(messages)
    assert [sent[: len(PART)] for sent in commands if "SETEX" in sent][:3] == [PART] * 3
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert chord.results == [body("first", "second", "third")]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("way", ["batch", "marked"])
def test_the_same_is_stored_counted_and_published_as_by_celery(
    site: Any, config: str, way: str
) -> None:
    """Keys, bytes and messages are those of ordinary tasks."""
    here = site(**CONFIGS[config])

    def mark(requests: Any) -> None:
        for request in requests:
            here.app.backend.mark_as_done(request.id, {"way": request.args[0]}, request=request)

    if way == "marked":
        here.body = mark
    chord = Chord(here, 9)
    found = []
    for alone in (False, True):
        messages = chord.received("first", "second")
        here.published()
        if alone:
            here.run_alone(messages, [(False, None)] * 2)
        else:
            here.run(messages)
        counted = here.client.zrange(
            here.backend.get_key_for_group("g", ".j"), 0, -1, withscores=True
        )
        stored = [here.client.get(here.backend.get_key_for_task(f"id-{n}")) for n in range(2)]
        found.append((here.keys(), counted, stored, here.published()))
        assert len(counted) == len(found[-1][-1]) == 2
        here.clear()
    assert found[0] == found[1]


def lose(here: Any, messages: list[Any]) -> None:
    """Do as a worker does whose process is lost, with a message that was acknowledged before."""
    for message in messages:
        request = task_context(message)
        looks_first = counts_parts_once(here.backend)
        if looks_first and here.backend.get_state(request.id) == states.SUCCESS:
            continue
        here.backend.mark_as_failure(request.id, WorkerLostError("lost"), request=request)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("then", ["fails", "runs again", "is found done"])
@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_a_process_that_is_lost_at_any_command_leaves_no_chord_waiting(
    site: Any, monkeypatch: pytest.MonkeyPatch, at: int, sent: bool, then: str, complex: bool
) -> None:
    """No part is ever done and not counted; then the chord ends, by what its parts then do."""
    here = site(result_chord_join_timeout=1)
    chord = Chord(here, complex=complex)
    messages = chord.received("first", "second", "third")
    here.backend.get("connected")
    with monkeypatch.context() as patched:
        kill(patched, here.backend, at, sent=sent)
        with pytest.raises(Killed):
            here.run(messages)
    lost = at if sent else at - 1
    assert chord.done == chord.counted == max(lost, 0)
    if lost == 3:
        return  # All is counted, and the body of the chord not sent: as with an ordinary task.
    if then == "fails":
        lose(here, messages)
        # Celery before 5.7 also counts the failures of parts that were counted as done.
        assert here.backend.get_state("collected") in states.READY_STATES
        assert chord.results == [] or not counts_parts_once(here.backend)
        return
    here.app.conf.worker_deduplicate_successful_tasks = then == "is found done"
    here.task.acks_late = True
    for message in messages:
        message.delivery_info["redelivered"] = True
    here.run(messages)
    assert chord.results == [body("first", "second", "third")]


@pytest.mark.parametrize("then", ["fails", "runs again"])
@pytest.mark.parametrize("at", range(3))
def test_a_failed_part_that_is_stored_and_not_counted_is_counted_later(
    site: Any, monkeypatch: pytest.MonkeyPatch, at: int, then: str
) -> None:
    """Each is counted before the next is stored. So it is the last one, and is counted again."""
    here = site()
    chord = Chord(here)
    messages = chord.received("fail", "fail", "fail")
    count = RedisBackend.on_chord_part_return

    def on_chord_part_return(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.id == f"id-{at}":
            raise Killed
        return count(self, request, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(RedisBackend, "on_chord_part_return", on_chord_part_return)
        with pytest.raises(Killed):
            here.run(messages)
    assert here.states(0, 1, 2) == [states.FAILURE] * (at + 1) + [states.PENDING] * (2 - at)
    assert here.backend.get_state("collected") == states.PENDING
    if then == "fails":
        lose(here, messages)
    else:
        here.run(messages)
    assert here.backend.get_state("collected") == states.FAILURE


@pytest.mark.parametrize("way", ["counted", "not counted"])
def test_a_call_that_comes_again_and_was_done_is_counted_once(site: Any, way: str) -> None:
    """Also a part that Celery itself has stored, in a process that was lost before it counted."""
    here = site(worker_deduplicate_successful_tasks=True)
    if way == "not counted" and not counts_parts_once(here.backend):
        pytest.skip("this Celery may count a part twice")
    here.task.acks_late = True
    chord = Chord(here)
    messages = chord.received("first", "second", "third")
    if way == "counted":
        here.run(messages[:2])
    else:
        for message in messages[:2]:
            here.backend.mark_as_done(message.id, {"way": message.args[0]})
    for message in messages:
        message.delivery_info["redelivered"] = True
    here.body = lambda requests: pytest.fail("ran")
    here.run(messages[:2])
    here.run(messages[:2])
    assert chord.counted == 2
    here.body = here.mark
    here.run(messages)
    here.run(messages)
    assert chord.results == [body("first", "second", "third")]


@pytest.mark.skipif(COUNTS != ["EVAL"], reason="this Celery counts without a script")
def test_a_script_that_redis_does_not_know(
    site: Any, commands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart or a failover: no part is stored without being counted."""
    script = f"{celery_redis.CHORD_PART_RETURN_LUA}\n-- {uuid()}"
    monkeypatch.setattr(celery_redis, "CHORD_PART_RETURN_LUA", script)
    here = site()
    chord = Chord(here)
    commands.clear()
    here.run(chord.received("first", "second"))
    assert sum("EVAL" in sent for sent in commands) == 2
    assert not any({"EVALSHA", "SCRIPT"} & set(sent) for sent in commands)
    assert chord.done == chord.counted == 2


@pytest.mark.parametrize("name", ["eval", "zadd"])
def test_redis_that_refuses_the_transaction(
    site: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Such as to a user who may not EVAL: Celery's own way, and one line in the log."""
    if (name == "eval") is not (COUNTS == ["EVAL"]):
        pytest.skip("this Celery counts with another command")
    here = site()
    chord = Chord(here)
    command = getattr(redis.client.Pipeline, name)

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(self.command_stack) == 2:
            return self.execute_command("NO-SUCH-COMMAND")
        return command(self, *args, **kwargs)

    monkeypatch.setattr(redis.client.Pipeline, name, refuse)
    reports = here.run(chord.received("first", "second", "third"))
    assert [failed for failed, _ in reports] == [False] * 3
    assert chord.results == [body("first", "second", "third")]
    (record,) = [r for r in caplog.records if r.name.startswith("celery_batches")]
    assert record.levelname == "WARNING"
    assert "NO-SUCH-COMMAND" in record.getMessage()


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_connection_loses_and_doubles_no_part(
    site: Any, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """It is tried again as Celery tries to store a state."""
    policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    here = site(transport={"retry_policy": policy})
    chord = Chord(here)
    execute = redis.client.Pipeline.execute
    left = [1, 1]

    def execute_or_fail(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        if len(pipeline.command_stack) > 2 and left:
            left.pop()
            if after:
                execute(pipeline, *args, **kwargs)
            raise redis.ConnectionError("lost")
        return execute(pipeline, *args, **kwargs)

    monkeypatch.setattr(redis.client.Pipeline, "execute", execute_or_fail)
    reports = here.run(chord.received("first", "second"))
    assert left == []
    assert [failed for failed, _ in reports] == [False] * 2
    assert chord.done == chord.counted == 2


def test_a_part_whose_result_cannot_be_serialised_fails_alone(site: Any) -> None:
    here = site()
    chord = Chord(here)
    reports = here.run(chord.received("first", "function", "third"))
    assert [failed for failed, _ in reports] == [False, True, False]
    assert here.states(0, 1, 2) == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert here.backend.get_state("collected") == states.FAILURE


def test_an_ignored_result_is_counted_and_not_stored(site: Any) -> None:
    here = site()
    chord = Chord(here)
    calls = [(way, {"group_index": i}) for i, way in enumerate(["first", "second", "third"])]
    here.backend.set_chord_size("g", 3)
    here.run(here.received(*calls, group_id="g", chord=chord.body, ignore_result=True))
    assert chord.results == [body("first", "second", "third")]
    assert here.states(0, 1, 2) == [states.PENDING] * 3


def test_a_part_with_a_link(site: Any) -> None:
    """Its link is sent first."""
    here = site()
    chord = Chord(here)
    seen: list[Any] = []

    @here.app.task(name="unit.link")
    def link(value: Any) -> None:
        seen.append((value, chord.done))

    first, *others = chord.received("first", "second", "third")
    calls = [("first", {"group_index": 0, "callbacks": [link.s()]})]
    (first,) = here.received(*calls, group_id="g", chord=chord.body)
    here.run([first, *others])
    assert seen == [({"way": "first"}, 0)]
    assert chord.results == [body("first", "second", "third")]


def test_every_part_is_counted_before_a_handler_is_called(site: Any) -> None:
    """A handler that ends the process takes no other part with it."""
    here = site()
    chord = Chord(here)
    seen: list[int] = []
    here.task.__class__.on_success = lambda *args: seen.append(chord.counted)
    here.run(chord.received("first", "second", "third"))
    assert seen == [3, 3, 3]


def test_without_the_shortcut_celery_stores_and_then_counts(site: Any, commands: Any) -> None:
    here = site(batches_shortcuts=SHORTCUTS - {"bulk_results"})
    chord = Chord(here)
    commands.clear()
    here.run(chord.received("first", "second", "third"))
    assert not any("SETEX" in sent and COUNTS[0] in sent for sent in commands)
    assert not any("MGET" in sent for sent in commands)
    assert chord.results == [body("first", "second", "third")]


@pytest.mark.parametrize("backend", ["cache+memory://", "db+sqlite://"])
def test_other_backends_count_in_their_own_way(app: Any, backend: str) -> None:
    app.conf.result_backend = backend
    request = type("Part", (), {"chord": {"task": "unit.collect"}})()
    assert ChordParts(app.backend).counts_at_once(request) is False
