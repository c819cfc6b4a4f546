"""Everything a message can be: encodings, protocols, what it says of its call, and nonsense."""

from datetime import datetime, timedelta, timezone

import pytest
from celery import chain, chord
from celery.canvas import StampingVisitor
from kombu.utils.uuid import uuid

SERIALIZERS = ["json", "pickle", "yaml", "msgpack"]
COMPRESSIONS = [None, "zlib", "gzip", "bzip2"]


def test_serializers_and_compression(broker, backend, deploy):
    site = deploy("context_app", broker, backend, accept_content=SERIALIZERS)
    tell = site.module.tell
    ways = [(serializer, how) for serializer in SERIALIZERS for how in COMPRESSIONS]
    results = [
        tell.apply_async((i, "ü" * 100), {"way": list(way)}, serializer=way[0], compression=way[1])
        for i, way in enumerate(ways)
    ]
    with site.worker():
        assert [result.get(timeout=30) for result in results] == list(range(16))
        told = site.reports.expect("told", 16)
    assert sorted((r["args"][0], *map(str, r["kwargs"]["way"])) for r in told) == sorted(
        (i, *map(str, way)) for i, way in enumerate(ways)
    )
    assert {report["args"][1] for report in told} == {"ü" * 100}


def test_task_protocol_1(broker, backend, deploy):
    site = deploy("context_app", broker, backend, task_protocol=1)
    tell = site.module.tell
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    calls = [
        tell.apply_async((i,), {"word": "yes"}, countdown=0.1 if i == 2 else None, expires=later)
        for i in range(3)
    ]
    with site.worker():
        assert [result.get(timeout=30) for result in calls] == [0, 1, 2]
        told = {report["id"]: report for report in site.reports.expect("told", 3)}
    for i, call in enumerate(calls):
        assert told[call.id]["args"] == [i]
        assert told[call.id]["kwargs"] == {"word": "yes"}
        assert told[call.id]["retries"] == 0
        assert told[call.id]["expires"]
        assert bool(told[call.id]["eta"]) == (i == 2)


def test_hybrid_of_the_protocols(broker, deploy):
    site = deploy("context_app", broker)
    tell, task_id = site.module.tell, uuid()
    body = {
        "task": tell.name,
        "id": task_id,
        "args": [7],
        "kwargs": {"word": "yes"},
        "retries": 2,
        "eta": None,
        "expires": None,
        "utc": True,
        "callbacks": None,
        "errbacks": None,
        "timelimit": [None, None],
        "taskset": None,
        "chord": None,
    }
    site.publish(
        body,
        {"lang": "py", "task": tell.name, "id": task_id},
        serializer="json",
        correlation_id=task_id,
        reply_to="nobody",
    )
    with site.worker():
        (told,) = site.reports.expect("told")
    assert told["id"] == task_id
    assert (told["args"], told["kwargs"]) == ([7], {"word": "yes"})
    assert (told["retries"], told["correlation_id"]) == (2, task_id)


# Celery 5.3 stores the members of a group by what redis-py 8 deprecates.
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_a_request_knows_everything_about_its_call(broker, redis_url, deploy):
    site = deploy("context_app", broker, redis_url)  # There are no chords with rpc://.
    tell, total, spawn = (getattr(site.module, name) for name in ("tell", "total", "spawn"))
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    single = tell.apply_async(
        (1,),
        {"word": "yes"},
        countdown=0.1,
        expires=later,
        headers={"tenant": "acme"},
        link=total.si([1]),
        link_error=total.si([2]),
        retries=3,
        time_limit=50,
        soft_time_limit=40,
        ignore_result=True,
        priority=3,
    )
    with site.worker() as worker:
        members = chord([tell.s(2), tell.s(3)])(total.s())
        parent = spawn.delay(4)
        followed = chain(tell.s(5), total.si([5])).apply_async()
        stamped = tell.s(6)
        stamped.stamp(Stamp(), append_stamps=False)
        stamped_call = stamped.apply_async()
        told = {report["args"][0]: report for report in site.reports.expect("told", 6)}
        (spawned,) = site.reports.expect("spawned")
        assert members.get(timeout=30) == 5
    one = told[1]
    assert (one["id"], one["name"], one["kwargs"]) == (single.id, tell.name, {"word": "yes"})
    assert one["hostname"] == worker.node
    assert (one["retries"], one["ignore_result"], one["redelivered"]) == (3, True, False)
    assert one["headers"]["tenant"] == "acme"
    assert (one["timelimit"], one["time_limit"], one["soft_time_limit"]) == ([50, 40], 50, 40)
    assert [callback["task"] for callback in one["callbacks"]] == [total.name]
    assert [errback["args"] for errback in one["errbacks"]] == [[[2]]]
    assert one["eta"]
    assert datetime.fromisoformat(one["expires"]) == later
    assert one["correlation_id"] == single.id
    assert one["reply_to"]
    assert one["delivery_info"]["routing_key"] == site.queue
    assert (one["root_id"], one["parent_id"], one["group"], one["chord"]) == (
        single.id,
        None,
        None,
        None,
    )
    for number, index in ((2, 0), (3, 1)):
        assert told[number]["group"] == members.parent.id
        assert told[number]["group_index"] == index
        assert told[number]["chord"]["task"] == total.name
    assert told[4]["id"] == spawned["child"]
    assert (told[4]["parent_id"], told[4]["root_id"]) == (parent.id, parent.id)
    assert told[5]["id"] == followed.parent.id
    assert [step["task"] for step in told[5]["chain"]] == [total.name]
    assert told[6]["id"] == stamped_call.id
    assert told[6]["stamps"] == {"customer": ["acme"]}
    assert told[6]["stamped_headers"] == ["customer"]


class Stamp(StampingVisitor):
    def on_signature(self, sig, **headers):
        return {"customer": ["acme"], "stamped_headers": ["customer"]}


def embed():
    return {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def bad_messages(task):
    """Name -> body, changes to the headers, and options to publish it with."""
    good = [[99], {}, embed()]
    text = {"content_type": "application/json", "content_encoding": "utf-8"}
    return {
        "null": (None, {}, {"serializer": "json"}),
        "a number": (42, {}, {"serializer": "json"}),
        "two parts": ([[99], {}], {}, {"serializer": "json"}),
        "args are a string": (["abc", {}, embed()], {}, {"serializer": "json"}),
        "kwargs are a list": ([[99], [1, 2], embed()], {}, {"serializer": "json"}),
        "eta cannot be read": (good, {"eta": "tomorrow"}, {"serializer": "json"}),
        "eta is no string": (good, {"eta": 12}, {"serializer": "json"}),
        "eta overflows": (good, {"eta": "9999-12-31T23:59:59-14:00"}, {"serializer": "json"}),
        "expires cannot be read": (good, {"expires": "never"}, {"serializer": "json"}),
        "refused content type": (good, {}, {"serializer": "pickle"}),
        "garbage": (b"\x80\xff{", {}, text),
        "unknown content type": (b"?", {}, {"content_type": "x/y", "content_encoding": "binary"}),
        "no id": (good, {"id": ...}, {"serializer": "json"}),
    }


def test_bad_messages_are_dropped_one_by_one(broker, deploy):
    site = deploy("context_app", broker)
    tell = site.module.tell
    bad = bad_messages(tell)
    for i, (body, changes, options) in enumerate(bad.values()):
        tell.delay(i)
        task_id = uuid()
        headers = {"lang": "py", "task": tell.name, "id": task_id, "root_id": task_id}
        headers = {k: v for k, v in {**headers, **changes}.items() if v is not ...}
        site.publish(body, headers, correlation_id=task_id, **options)
    tell.delay(len(bad))
    with site.worker() as worker:
        told = site.reports.expect("told", len(bad) + 1)
        worker.wait_for_batches(len(bad) + 1)
        site.wait_until_active(worker, 0)
    assert sorted(report["args"][0] for report in told) == list(range(len(bad) + 1))
    assert len(worker.problems) == len(bad), "\n".join(worker.problems)
    assert site.messages_left() == 0
