"""Many calls are sent lazily, with signals and events, from bodies, eagerly, and by fallbacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import count
from threading import Thread
from typing import Any

import kombu
import pytest
from celery import Celery, Task, signals
from celery._state import _task_stack
from celery.result import EagerResult

from celery_batches import Batches, SimpleRequest
from celery_batches.client import senders
from celery_batches.client.senders import LoopSender
from celery_batches.client.template import MessageTemplate
from celery_batches.core.shortcuts import SHORTCUTS
from celery_batches.transports import amqp_publish, redis_publish
from kit.sending import Deployment, ids_of

NOW = datetime(2101, 1, 1, tzinfo=timezone.utc)

CHUNKED = pytest.mark.parametrize(
    "broker",
    [
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ],
)


def ready(deployment: Deployment) -> int:
    with deployment.app.connection_for_write() as connection:
        queue = deployment.app.amqp.queues[deployment.queue](connection.default_channel)
        try:
            return int(queue.queue_declare(passive=True).message_count)
        except connection.channel_errors:
            return 0  # Redis has no queue that is empty.


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_no_more_than_a_chunk_is_taken_ahead(deployment: Any, chunk: int) -> None:
    """When a call is taken, all but the last `chunk` calls before it are in the queue."""
    deployment.task.delay(0)
    deployment.take()
    ahead: list[int] = []

    def calls() -> Iterator[Any]:
        for number in range(10):
            ahead.append(number - ready(deployment))
            yield ((number,),)

    results = deployment.task.apply_async_many(calls(), chunk=chunk)
    assert max(ahead) < chunk
    assert ids_of(deployment.take()) == [result.id for result in results]


@CHUNKED
def test_large_messages_are_sent_in_smaller_chunks(
    deploy: Any, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory is bounded by bytes, and not only by calls."""
    deployment = deploy(broker)
    monkeypatch.setattr(senders, "MAX_CHUNK_BYTES", 1000)
    sizes: list[int] = []
    flush = senders.ChunkSender.flush
    monkeypatch.setattr(
        senders.ChunkSender,
        "flush",
        lambda self: (sizes.append(len(self._calls)), flush(self)),
    )
    deployment.task.delay_many(("x" * 600,) for _ in range(6))
    assert sizes == [2, 2, 2, 0]
    assert len(deployment.take()) == 6


def test_the_calls_of_an_argument_that_changes(deployment: Any) -> None:
    """Each call has the argument as it was when the call was taken."""
    argument: list[int] = []

    def calls() -> Iterator[Any]:
        for number in range(3):
            argument.append(number)
            yield (argument,)

    deployment.task.delay_many(calls())
    assert [m.payload[0][0] for m in deployment.take()] == [[0], [0, 1], [0, 1, 2]]


def test_a_generator_may_send_calls_itself(deployment: Any) -> None:
    """No connection is taken from the pool while the generator runs."""
    deployment.app.conf.broker_pool_limit = 1

    def calls() -> Iterator[Any]:
        for number in range(5):
            deployment.task.delay("own")
            yield (number,)

    deployment.task.delay_many(calls())
    assert len(deployment.take()) == 10


# Signals and events.


@contextmanager
def connected(signal: Any, receiver: Callable[..., None]) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    yield
    signal.disconnect(receiver)


@pytest.mark.parametrize("changes", [True, False])
def test_receivers_before_publishing(deployment: Any, changes: bool) -> None:
    """Each call is announced, and a receiver may change its message."""
    seen: list[Any] = []

    def before(sender: Any, body: Any, headers: Any, properties: Any, **options: Any) -> None:
        seen.append((sender, body[0], sorted(options)))
        if changes:
            headers["seen"] = headers["id"]
            properties["priority"] = 3

    with connected(signals.before_task_publish, before):
        for number in range(3):
            deployment.task.delay(number)
        control, seen[:] = list(seen), []
        results = deployment.task.delay_many((number,) for number in range(3))
    assert seen == control
    messages = deployment.take()
    assert ids_of(messages)[3:] == [result.id for result in results]
    if changes:
        assert [message.headers["seen"] for message in messages] == ids_of(messages)
        assert {message.properties["priority"] for message in messages} == {3}


def test_receivers_after_publishing(deployment: Any) -> None:
    """Each is called when its message is in the queue."""
    deployment.task.delay(0)
    deployment.take()
    seen: list[Any] = []

    def after(sender: Any, headers: Any, **options: Any) -> None:
        seen.append((headers["id"], ready(deployment)))

    with connected(signals.after_task_publish, after):
        results = deployment.task.delay_many((number,) for number in range(3))
    assert seen == [(result.id, number) for number, result in enumerate(results, 1)]
    deployment.take()


def test_events(deployment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With task_send_sent_event, the event of each call follows its message."""
    deployment.app.conf.task_send_sent_event = True
    published: list[str] = []
    publish = kombu.Producer._publish

    def recorded(producer: Any, body: Any, *args: Any, **options: Any) -> Any:
        text = re.sub(
            rb'"(timestamp|clock)": [\d.]+', b"", body if isinstance(body, bytes) else body.encode()
        )
        published.append(text.decode())
        return publish(producer, body, *args, **options)

    monkeypatch.setattr(kombu.Producer, "_publish", recorded)
    calls = [{"args": (number,), "task_id": f"id-{number}"} for number in range(3)]
    for call in calls:
        deployment.task.apply_async(**call)
    control, published[:] = list(published), []
    deployment.task.apply_async_many(calls)
    assert published == control
    assert sum("task-sent" in text for text in published) == 3
    assert len(deployment.take()) == 6


@pytest.mark.parametrize("option", ["countdown", "expires"])
def test_times_count_from_each_call(
    deployment: Any, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call has the time at which it is taken, however long the others take."""
    header = "eta" if option == "countdown" else option
    times = []
    for is_loop in (True, False):
        clock = count()
        monkeypatch.setattr(
            deployment.app, "now", lambda clock=clock: NOW + timedelta(minutes=next(clock))
        )
        if is_loop:
            for number in range(3):
                deployment.task.apply_async((number,), **{option: 6000})
        else:
            deployment.task.apply_async_many(
                [((number,),) for number in range(3)], **{option: 6000}
            )
        times.append([message.headers[header] for message in deployment.take()])
    assert times[0] == times[1]
    assert len(set(times[0])) == 3


# Calls from a body.


def parents(deployment: Deployment) -> list[Any]:
    return [
        (m.headers["root_id"], m.headers["parent_id"], m.properties.get("priority"))
        for m in deployment.take()
    ]


@contextmanager
def running(deployment: Deployment, task_id: str) -> Iterator[Any]:
    """An ordinary task that runs here."""
    made = deployment.app.tasks.get("unit.caller")
    task = made or deployment.make_task("unit.caller", base=Task)
    info = {"priority": 5}
    task.push_request(id=task_id, root_id="root", delivery_info=info, called_directly=False)
    _task_stack.push(task)
    try:
        yield task
    finally:
        _task_stack.pop()
        task.pop_request()


def test_calls_from_a_task(deployment: Any) -> None:
    """They have the ids and the priority of the task, and are its children."""
    app = deployment.app
    app.conf.task_inherit_parent_priority = True
    with running(deployment, "parent") as caller:
        for number in range(3):
            deployment.task.delay(number)
        control = parents(deployment)
        children = len(caller.request.children)
        results = deployment.task.delay_many((number,) for number in range(3))
        assert parents(deployment) == control
        assert [child.id for child in caller.request.children[children:]] == [r.id for r in results]
        deployment.task.apply_async_many([((1,),), ((2,),)], add_to_parent=False)
        assert len(caller.request.children) == 6
    assert control[0] == ("root", "parent", 5)
    deployment.take()


def test_a_generator_that_changes_the_current_task(deployment: Any) -> None:
    """Each call belongs to the task that is current when it is taken, as in a loop."""

    def calls() -> Iterator[Any]:
        for number in range(4):
            with running(deployment, f"parent-{number // 2}"):
                yield (number,)

    deployment.task.delay_many(calls())
    assert [parent for _, parent, _ in parents(deployment)] == [
        *("parent-0", "parent-0", "parent-1", "parent-1")
    ]


def test_many_are_checked_by_the_signature_if_asked_for(deployment: Any) -> None:
    """Arguments are checked by the signature of the body if that is asked for."""

    def body(requests: Any) -> None: ...

    strict = deployment.app.task(name="unit.strict", base=Batches, typing=True)(body)
    with pytest.raises(Exception, match="1 calls are sent") as error:
        strict.delay_many([(1,), (1, 2)])
    assert isinstance(error.value.__cause__, TypeError)
    deployment.take()


# Where there is no chunk.


def test_eager_calls(app: Any) -> None:
    """They run one after the other. What a body raises is raised as it is."""
    app.conf.task_always_eager = True

    @app.task(name="unit.eager", base=Batches, return_results=True)
    def double(requests: list[SimpleRequest]) -> list[Any]:
        return [request.args[0] * 2 for request in requests]

    results = double.delay_many([(1,), (2,)])
    assert [type(result) for result in results] == [EagerResult] * 2
    assert results.get() == [2, 4]
    app.conf.task_eager_propagates = True

    @app.task(name="unit.bad", base=Batches)
    def bad(requests: list[SimpleRequest]) -> None:
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        bad.delay_many([(1,), (2,)])


class Overridden(Batches):
    """Its calls are made in its own way."""

    abstract = True
    seen: list[Any] = []  # noqa: RUF012

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        self.seen.append(args[0])
        return super().apply_async(args, kwargs, **options)


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that were sent one after the other."""
    looped: list[Any] = []
    add = LoopSender.add
    monkeypatch.setattr(
        LoopSender, "add", lambda self, call: (looped.append(call.args[0]), add(self, call))[1]
    )
    return looped


def test_a_subclass_with_its_own_apply_async(deployment: Any, loops: list[Any]) -> None:
    task = deployment.make_task("unit.own", base=Overridden)
    Overridden.seen.clear()
    task.delay_many([(1,), (2,)])
    assert Overridden.seen == loops == [1, 2]
    assert len(deployment.take()) == 2


@CHUNKED
def test_the_switches(deploy: Any, broker: str, loops: list[Any]) -> None:
    """Without a shortcut, the same messages are sent more slowly."""
    deployment = deploy(broker)
    deployment.task.delay_many([(1,), (2,)])
    assert loops == []
    name = "redis_publish" if broker == "redis" else "amqp_publish"
    deployment.app.conf.batches_shortcuts = SHORTCUTS - {name}
    deployment.task.delay_many([(1,), (2,)])
    assert loops == [1, 2]
    assert [m.payload[0] for m in deployment.take()] == [[1], [2]] * 2


@CHUNKED
def test_a_channel_that_is_not_as_known(
    deploy: Any, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu publishes each message of the chunk."""
    module = redis_publish if broker == "redis" else amqp_publish
    monkeypatch.setattr(module, "is_supported", lambda channel: False)
    monkeypatch.setattr(module, "publish", None)
    deployment = deploy(broker)
    results = deployment.task.delay_many([(1,), (2,)])
    assert ids_of(deployment.take()) == [result.id for result in results]


@pytest.mark.redis
def test_results_in_redis_are_subscribed_to_when_they_are_waited_for(
    app: Any, redis_url: str
) -> None:
    """Those that are there before, and those that come while somebody waits."""
    with Celery("unit", broker=redis_url, backend=redis_url) as own:
        deployment = Deployment(own)
        backend = own.backend
        results = deployment.task.delay_many((number,) for number in range(20))
        ids = ids_of(deployment.take())
        assert not backend.result_consumer.subscribed_to
        for number, task_id in enumerate(ids[:10]):
            backend.store_result(task_id, number, "SUCCESS")
        thread = Thread(target=store, args=(redis_url, ids[10:]))
        thread.start()
        assert results.get(timeout=20) == [*range(10), *ids[10:]]
        thread.join()
        results.forget()
        deployment.close()


def store(url: str, ids: list[str]) -> None:
    with Celery("other", backend=url, set_as_current=False) as app:
        for task_id in ids:
            app.backend.store_result(task_id, task_id, "SUCCESS")


@CHUNKED
def test_the_switch_of_templates(deploy: Any, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deploy(broker)
    monkeypatch.setattr(MessageTemplate, "publish", None)
    deployment.app.conf.batches_shortcuts = SHORTCUTS - {"message_templates"}
    deployment.task.delay_many([(1,), (2,)])
    assert len(deployment.take()) == 2


@CHUNKED
@pytest.mark.parametrize("way", ["connection", "producer", "publisher"])
@pytest.mark.parametrize("each", [False, True])
def test_a_connection_of_the_caller(deploy: Any, broker: str, way: str, each: bool) -> None:
    """For all calls, or for one of them."""
    deployment = deploy(broker)
    used = deployment.app.connection_for_write()
    with used as connection:
        own = connection if way == "connection" else deployment.app.amqp.Producer(connection)
        if each:
            calls = [((1,),), {"args": (2,), way: own}, ((3,),)]
            deployment.task.apply_async_many(calls)
        else:
            deployment.app.conf.broker_write_url = "redis://127.0.0.1:1//"
            deployment.task.apply_async_many([((n,),) for n in (1, 2, 3)], **{way: own})
            deployment.app.conf.broker_write_url = None
    # Two connections have no order between them.
    assert sorted(m.payload[0][0] for m in deployment.take()) == [1, 2, 3]


@CHUNKED
@pytest.mark.parametrize("wrapped", [(Task, "apply_async"), (Celery, "send_task")])
def test_a_tool_that_wraps_celery(
    deploy: Any, broker: str, wrapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees every call, as Sentry does, and the messages are sent in chunks all the same."""
    deployment = deploy(broker)
    seen: list[str] = []
    original = getattr(*wrapped)

    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(options["task_id"])
        return original(self, *args, **options)

    wrapper.__module__ = original.__module__
    monkeypatch.setattr(*wrapped, wrapper)
    results = deployment.task.delay_many((number,) for number in range(3))
    assert seen == [result.id for result in results]
    assert ids_of(deployment.take()) == seen
