"""Each message of many is the one that `apply_async` would send, for every option."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Task

from celery_batches import Batches
from celery_batches.client.template import MessageTemplate

NOW = datetime(2101, 1, 1, tzinfo=timezone.utc)

ARGUMENTS: list[Any] = [
    ((1, "x" * 2000), {}),
    ([2, {"deep": [{"er": [[[1]]]}]}], {"key": "value"}),
    ((), {"ä": "ö", "none": None}),
    (None, None),
]

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "countdown": {"countdown": 10},
    "eta": {"eta": "2101-01-01T00:01:00+00:00"},
    "eta as a datetime": {"eta": NOW + timedelta(minutes=1)},
    "expires": {"expires": 60},
    "expires as a datetime": {"expires": NOW + timedelta(minutes=1)},
    "limits": {"time_limit": 30, "soft_time_limit": 20},
    "ignore_result": {"ignore_result": True},
    "exchange": {"exchange": "", "routing_key": "QUEUE"},
    "queue": {"queue": "QUEUE"},
    "priority": {"priority": 7},
    "headers": {"headers": {"x": 1}},
    "stamps": {"stamped_headers": ["x"], "x": "y"},
    "shadow": {"shadow": "other"},
    "identity": {"root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 3},
    "retries": {"retries": 4},
    "reprs": {"argsrepr": "<hidden>", "kwargsrepr": "<hidden>"},
    "pickle": {"serializer": "pickle"},
    "yaml": {"serializer": "yaml"},
    "msgpack": {"serializer": "msgpack"},
    "compression": {"compression": "zlib"},
    "expiration": {"expiration": 9},
    "delivery_mode": {"delivery_mode": "transient"},
    "retry": {"retry": False},
    "retry_policy": {"retry": True, "retry_policy": {"max_retries": 1}},
    "add_to_parent": {"add_to_parent": False},
    "replaced_task_nesting": {"replaced_task_nesting": 2},
    "reply_to": {"reply_to": "somebody"},
    "link": {"link": {"task": "unit.link", "args": [1], "kwargs": {}, "options": {}}},
    "link_error": {"link_error": [{"task": "unit.link", "args": [], "kwargs": {}, "options": {}}]},
    "chain": {"chain": [{"task": "unit.next", "args": [], "kwargs": {}, "options": {}}]},
    "chord": {"chord": {"task": "unit.end", "args": [], "kwargs": {}, "options": {}}},
    "timeout": {"timeout": 5},
}


def as_text(messages: list[Any], queue: str) -> list[str]:
    """All of each message but for what numbers it."""
    texts = []
    for message in messages:
        properties = {**message.properties, "delivery_info": None, "delivery_tag": None}
        found = (
            *(message.body, message.content_type, message.content_encoding, message.headers),
            *(properties, message.delivery_info["exchange"], message.delivery_info["routing_key"]),
        )
        texts.append(re.sub(queue, "QUEUE", repr(found)))
    return texts


def named(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls, each with an id, and with the options."""
    return [
        {"args": args, "kwargs": kwargs, "task_id": f"id-{number}", **options}
        for number, (args, kwargs) in enumerate(ARGUMENTS)
    ]


def compare(deployment: Any, options: dict[str, Any], task: Any = None) -> list[str]:
    """Send calls in a loop, with common options, and with options of their own; compare."""
    task = task or deployment.task
    options = {
        name: deployment.queue if value == "QUEUE" else value for name, value in options.items()
    }
    for call in named(options):
        task.apply_async(**call)
    control = as_text(deployment.take(), deployment.queue)
    assert len(control) == len(ARGUMENTS)
    for calls, common in ((named({}), options), (named(options), {})):
        results = task.apply_async_many(calls, **common)
        assert [result.id for result in results] == [call["task_id"] for call in calls]
        assert as_text(deployment.take(), deployment.queue) == control
    return control


@pytest.fixture(autouse=True)
def _still(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the app stands still."""
    monkeypatch.setattr(app, "now", lambda: NOW)


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("option", OPTIONS)
def test_each_of_many_is_sent_as_by_apply_async(
    deployment: Any, protocol: int, option: str
) -> None:
    """With an option for all calls, or for each of them."""
    deployment.app.conf.task_protocol = protocol
    if protocol == 1 and option in ("stamps", "eta"):
        pytest.skip("protocol 1 has no stamps and, in Celery 5.3, takes no text for a time")
    compare(deployment, OPTIONS[option])


OF_THE_TASK: dict[str, Any] = {
    "priority": 6,
    "expires": 60,
    "serializer": "pickle",
    "compression": "zlib",
    "delivery_mode": "transient",
    "time_limit": 9,
    "soft_time_limit": 8,
    "ignore_result": True,
}


# Celery 5.7 advises against some of them.
@pytest.mark.filterwarnings("ignore:[^']*'\\w+' task attribute is deprecated")
@pytest.mark.parametrize("option", OF_THE_TASK)
def test_many_are_sent_with_the_options_of_the_task(deployment: Any, option: str) -> None:
    task = deployment.make_task("unit.with_options", **{option: OF_THE_TASK[option]})
    compare(deployment, {}, task)


SETTINGS: dict[str, dict[str, Any]] = {
    "serializer": {"task_serializer": "pickle"},
    "compression": {"task_compression": "zlib"},
    "no retries": {"task_publish_retry": False},
    "transient": {"task_default_delivery_mode": "transient"},
    "priority": {"task_default_priority": 4},
    "local time": {"enable_utc": False, "timezone": "Europe/Oslo"},
    "routes": {"task_routes": {"unit.*": {"priority": 3}}},
    "a route for each call": {
        "task_routes": (lambda name, args, *_, **__: {"priority": 1 if args else 2},)
    },
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_many_are_sent_with_the_settings_of_the_app(deployment: Any, setting: str) -> None:
    deployment.app.conf.update(SETTINGS[setting])
    compare(deployment, {})


def test_many_are_sent_with_a_shadow_name_of_each(deployment: Any) -> None:
    class Shady(Batches):
        abstract = True

        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
            return f"shady-{args}"

    control = compare(deployment, {}, deployment.make_task("unit.shady", base=Shady))
    assert len(set(re.findall("shady-[^']*", "".join(control)))) == len(ARGUMENTS)


def test_the_first_message_of_a_chunk_is_a_template(
    deploy: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery makes one message of each chunk, unless that is switched off."""
    deployment = deploy("redis")
    made: list[str] = []
    apply_async = Task.apply_async

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        made.append(options["task_id"])
        return apply_async(self, *args, **options)

    publish = MessageTemplate.publish
    copied: list[str] = []
    monkeypatch.setattr(
        MessageTemplate,
        "publish",
        lambda self, args, kwargs, id: (copied.append(id), publish(self, args, kwargs, id)),
    )
    results = deployment.task.delay_many([(n,) for n in range(5)])
    assert copied == [result.id for result in results][1:]
    monkeypatch.setattr(Task, "apply_async", counted)
    results = deployment.task.delay_many([(n,) for n in range(5)])
    assert made == [result.id for result in results]
    assert len(copied) == 4
    assert len(deployment.take()) == 10
