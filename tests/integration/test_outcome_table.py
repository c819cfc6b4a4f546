"""The table of outcomes on real workers: each row, with all options, acknowledgements and pools.

One worker for each pool and broker runs a batch for each cell of the table, and the workers take
turns with the ways to acknowledge. Then the state of each request is in the result
backend. What was requeued is in the queue when the worker has stopped, what was retried is in a
queue that has no consumer, and what was rejected is in the dead-letter queue of RabbitMQ.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
from harness import DEADLINE, Deployment, Reports, options_for
from kombu.utils.uuid import uuid

APPS = str(Path(__file__).parent / "apps")
sys.path.insert(0, APPS)
outcome_table = importlib.import_module("outcome_table")
sys.path.remove(APPS)

POOLS = [
    "prefork",
    "threads",
    "solo",
    pytest.param("gevent", marks=pytest.mark.gevent),
    pytest.param("eventlet", marks=pytest.mark.eventlet),
]

#: Where the message is, by what the broker is told of it. Redis has no dead letters.
PLACES = {
    "rabbitmq": {"ack": "gone", "reject": "dead", "requeue": "queue"},
    "redis": {"ack": "gone", "reject": "gone", "requeue": "queue"},
}

#: Workers take turns with the ways to acknowledge.
NAMES = ("prefork", "threads", "solo", "gevent", "eventlet")
TURNS = {each: turn for turn, each in enumerate(product(NAMES, PLACES))}


@dataclass
class Found:
    """What became of the calls.

    Attributes:
        site: The app of the worker.
        broker: The name of the broker.
        runs: How many requests the body got in each run, by the number of poisonous ones.
        ids: The ids of the calls of each cell.
        metas: What the result backend has of each call.
        queued: For each queue, the ids of the messages in it.
        left: How many are in the queue, or unacknowledged, after these.
    """

    site: Deployment
    broker: str
    runs: dict[int, list[int]] = field(default_factory=dict)
    ids: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    metas: dict[str, dict] = field(default_factory=dict)
    queued: dict[str, Counter] = field(default_factory=dict)
    left: int = 0

    def places(self, ids):
        """Where the message of each call is."""
        return [
            " ".join(name for name in ("queue", "dead") if self.queued[name][id]) or "gone"
            for id in ids
        ]

    def wanted(self, cell):
        """Where the message of each call of a cell is to be."""
        return [PLACES[self.broker][fate] for fate in outcome_table.fates(*cell)]

    def wanted_of_lost(self):
        """The same for the calls whose process is lost and which do not come again."""
        lost = {"strict": "reject"}
        return [
            PLACES[self.broker][lost.get(cell[1], "ack")]
            for cell, ids in self.ids.items()
            if cell[0] == "die"
            for _ in ids
        ]

    def metas_of(self, ids):
        return [self.metas[id] for id in ids]

    def sent_again(self, ids):
        return [bool(self.queued["parked"][id]) for id in ids]

    def count_places(self):
        """How many messages are to be in each place."""
        cells = self.site.module.TASKS
        return Counter(place for cell in cells for place in self.wanted(cell))

    def send(self):
        """Fill a batch for each cell."""
        module = self.site.module
        with self.site.app.producer_pool.acquire(block=True) as producer:
            for cell, task in module.TASKS.items():
                calls = [task.apply_async(*call, producer=producer) for call in module.CALLS]
                self.ids[cell] = [call.id for call in calls]
            for numbers, task in module.POISONED.items():
                calls = [(number, number in numbers) for number in range(100)]
                sent = [task.apply_async(call, producer=producer) for call in calls]
                self.ids[numbers] = [call.id for call in sent]

    def lose(self, reports):
        """Have the processes of some batches die. What is redelivered then runs again, and ends."""
        for acks, task in self.site.module.LOST.items():
            calls = [task.delay() for _ in range(outcome_table.SIZE)]
            self.ids["die", acks] = [call.id for call in calls]
        reports.expect("ignored", outcome_table.SIZE, each=lambda report: report["size"])

    def read(self):
        """Read the backend and the queues, when the worker has stopped."""
        module = self.site.module
        places = self.count_places()
        letters = "".join(outcome_table.cell(way, column) for way, column, _ in module.TASKS)
        for ids in self.ids.values():
            self.metas.update((id, self.site.app.backend.get_task_meta(id)) for id in ids)
        self.queued["queue"] = drain(self.site, module.queue, places["queue"])
        self.queued["parked"] = drain(self.site, module.parked, letters.count("R"))
        places["dead"] += self.wanted_of_lost().count("dead")
        self.queued["dead"] = drain(self.site, module.dead, places["dead"])
        self.left = self.site.messages_left()


def drain(site, queue, wanted):
    """The ids of the messages in a queue. There may be more than wanted."""
    ids = Counter()
    deadline = time.monotonic() + DEADLINE
    with site.app.connection_for_read() as connection:
        bound = queue(connection.default_channel)
        bound.declare()
        # The broker sends dead letters on its own time.
        while ids.total() < wanted and time.monotonic() < deadline:
            while message := bound.get(no_ack=True, accept=["json"]):
                ids[message.headers["id"]] += 1
    return ids


def delete(site, *queues):
    with site.app.connection_for_write() as connection:
        for queue in queues:
            bound = queue(connection.default_channel)
            bound.delete()
            bound.exchange.delete()


@pytest.fixture(scope="module", params=POOLS)
def pool(request):
    return request.param


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ],
)
def found(request, pool, redis_url, tmp_path_factory):
    broker = request.param
    options = options_for(request.getfixturevalue(f"{broker}_url"), redis_url, f"test-{uuid()}")
    options["table_turn"] = TURNS[pool, broker]
    if pool in ("gevent", "eventlet"):
        options["broker_heartbeat"] = 0  # As in `test_pools`.
    reports = Reports()
    site = Deployment("table_app", tmp_path_factory.mktemp("table"), options, reports)
    try:
        found = Found(site, broker)
        with site.app.connection_for_write() as connection:
            site.module.dead(connection.default_channel).declare()
        with site.worker(pool) as worker:
            found.send()
            reports.expect("batch", len(found.ids))
            waiting = found.count_places()["queue"]
            site.wait_until_active(worker, 0, waiting=waiting)
            if pool == "prefork":
                found.lose(reports)
                site.wait_until_active(worker, 0, waiting=waiting)
        for report in reports.of("run"):
            found.runs.setdefault(report["count"], []).append(report["size"])
        found.read()
        yield found
    finally:
        delete(site, site.module.parked, site.module.dead)
        site.close()
        reports.close()


@pytest.mark.parametrize("column", outcome_table.COLUMNS)
def test_a_column(found, column):
    """What becomes of each request, whatever the body does."""
    wrong = {}
    for cell in found.site.module.TASKS:
        way, of_column, _ = cell
        if of_column == column:
            ids = found.ids[cell]
            metas, again = found.metas_of(ids), found.sent_again(ids)
            result = outcome_table.letters(way, column, metas, again)
            if result != outcome_table.cell(way, column) or found.places(ids) != found.wanted(cell):
                wrong[cell] = result, found.places(ids)
    assert wrong == {}


@pytest.mark.parametrize(("numbers", "most"), [((37,), 16), ((0, 50, 99), 40)])
def test_poison(found, numbers, most):
    """Of 100 requests those that make the body raise fail, and no other, in few runs."""
    metas = found.metas_of(found.ids[numbers])
    failed = [number for number, meta in enumerate(metas) if meta["status"] == "FAILURE"]
    assert failed == list(numbers)
    assert [str(metas[number]["result"]) for number in failed] == list(map(str, numbers))
    done = [number for number, meta in enumerate(metas) if meta["status"] == "SUCCESS"]
    assert done == [metas[number]["result"] for number in done]
    assert len(done) == 100 - len(numbers)
    first, *_ = runs = found.runs[len(numbers)]
    assert first == 100
    assert len(runs) <= most


def test_a_lost_process(found, pool):
    """A batch whose process dies: its requests fail, or come again with reject_on_worker_lost."""
    if pool != "prefork":
        pytest.skip("only prefork has processes")
    states, places = [], []
    for acks in outcome_table.ACKS:
        ids = found.ids["die", acks]
        states += [{meta["status"] for meta in found.metas_of(ids)}]
        places += found.places(ids)
    # Those that came again were ignored then.
    assert states == [{"FAILURE"}, {"FAILURE"}, {"FAILURE"}, {"PENDING"}]
    assert places == found.wanted_of_lost()


def test_every_message_is_accounted_for(found):
    """Nothing is in a queue that belongs to no call, or twice, or still unacknowledged."""
    known = {id for ids in found.ids.values() for id in ids}
    for ids in found.queued.values():
        assert set(ids) <= known
        assert set(ids.values()) <= {1}
    assert found.left == 0
