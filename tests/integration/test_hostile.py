"""Real workers that strangers send messages to."""

import json
import random
import re

import pytest
from kombu.utils.uuid import uuid
from nonsense import NONSENSE, PROTOCOLS, call, nonsense
from redis import Redis

REFUSED = r": (ERROR|CRITICAL)/MainProcess\]|Received and deleted unknown message"


def send(site, sent):
    """Publish a message as it is."""
    options = {**sent.properties, "content_type": sent.content_type}
    site.publish(sent.body, sent.headers, content_encoding=sent.content_encoding, **options)


def redis_only(site, task):
    """Push what no client of Celery can make of a message, each of which is bad; how many."""
    strange = [
        {"body": ...},
        {"body": None},
        {"content-encoding": 5},
        {"content-type": []},
        {"headers": {"task": task, "id": "\ud800"}},
        {"headers": {"task": task, "id": "x", "timelimit": [10**400, None]}},
    ]
    with Redis.from_url(site.config["broker_url"]) as client:
        for number, changes in enumerate(strange):
            info = {"exchange": site.queue, "routing_key": site.queue}
            properties = {"delivery_tag": f"tag-{number}", "delivery_info": info}
            message = {
                "body": json.dumps([[-1], {}, {}]),
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": {"task": task, "id": "x"},
                "properties": properties,
                **changes,
            }
            message = {key: value for key, value in message.items() if value is not ...}
            client.lpush(f"{site.queue}:{site.queue}", json.dumps(message))
    return len(strange)


def broker_takes(broker, sent):
    """Whether the broker takes such headers: RabbitMQ fails at floats that are not finite."""
    return broker.startswith("redis") or not re.search(r"\b(nan|inf)\b", repr(sent.headers))


def mixed(task, broker, seed):
    """Good calls among everything that can be wrong with one, in any order; how many are bad."""
    dice = random.Random(seed)
    bad = []
    for what in NONSENSE:
        for protocol in PROTOCOLS:
            good = call(task, uuid(), [-1], protocol)
            sent = nonsense(what, good)
            if sent != good and broker_takes(broker, sent):
                bad.append(sent)
    good = [call(task, uuid(), [i], dice.choice(PROTOCOLS)) for i in range(100)]
    everything = [*bad, *good]
    dice.shuffle(everything)
    return everything, len(bad)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_survives_every_nonsense(broker, redis_url, deploy, pool):
    """Every good call is run once; what is not one is dropped, and is one line in the log."""
    site = deploy("hostile_app", broker, redis_url)
    task = site.module.take.name
    messages, bad = mixed(task, broker, seed=pool)
    assert bad > 200
    with site.worker(pool) as worker:
        for sent in messages:
            send(site, sent)
        if broker == redis_url:
            bad += redis_only(site, task)
        site.module.ordinary.delay(1)
        took = site.reports.expect("took", 100, each=lambda report: len(report["numbers"]))
        site.reports.expect("ordinary")
        worker.wait_for_log(REFUSED, bad)
        site.wait_until_active(worker, 0)
    assert sorted(number for report in took for number in report["numbers"]) == list(range(100))
    refused = [line for line in worker.log.items if re.search(REFUSED, line)]
    assert len(refused) == bad, "\n".join(refused)
    assert site.messages_left() == 0
