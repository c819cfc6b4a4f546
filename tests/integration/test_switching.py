"""What changes for an application that switches from the original celery-batches 0.11.

The table in `docs/switching.rst` says in words what `BEFORE` and `AFTER` say here.
"""

import sys
from datetime import datetime, timedelta, timezone
from threading import Thread

import pytest
from celery import exceptions
from harness import Stream, python_of

PENDING = ["PENDING"] * 3
FAILURE = ["FAILURE"] * 3
SUCCESS = ["SUCCESS"] * 3

BEFORE = {
    "failing": PENDING,
    "half_failing": ["SUCCESS", "PENDING", "PENDING"],
    "marking_twice": ["SUCCESS", "PENDING", "PENDING"],
    "odd_result": PENDING,
    "retrying": PENDING,
    "rejecting": PENDING,
    "expired is run": True,
    "followed by link": 0,
    "followed by chain": 0,
    "handlers": [],
    "has an id of its own": False,
    "task_failure": 0,
    "events of requests": 0,
    "batches fill": False,
}
AFTER = {
    "failing": FAILURE,
    "half_failing": ["SUCCESS", "FAILURE", "FAILURE"],
    "marking_twice": SUCCESS,
    "odd_result": ["FAILURE", "SUCCESS", "SUCCESS"],
    "retrying": SUCCESS,
    "rejecting": None,  # As for a task: FAILURE in Celery 5.7, nothing before.
    "expired is run": False,
    "followed by link": 3,
    "followed by chain": 3,
    "handlers": ["on_failure"] * 3 + ["on_success"] * 3,
    "has an id of its own": True,
    "task_failure": 3,  # Of `failing`, `half_failing` and `handled`.
    "events of requests": 9,  # Received, started, succeeded: for three requests.
    "batches fill": True,
}


@pytest.mark.redis
@pytest.mark.parametrize(
    ("package", "expected"), [("ours", AFTER), ("0.11", BEFORE)], ids=["ours", "0.11"]
)
def test_what_changes(package, expected, redis_url, deploy):
    python = sys.executable if package == "ours" else python_of("original")
    # Without a prefix, which not every Celery makes into the same keys: the two may differ here.
    site = deploy("switching_app", redis_url, redis_url, result_backend_transport_options={})
    module = site.module
    names = ("failing", "half_failing", "marking_twice", "odd_result", "retrying", "rejecting")
    facts = {}
    with site.worker("prefork", "-E", python=python) as worker, Events(site.app) as events:
        # Events of batches that this task runs are looked for; those of the end are waited for.
        observed = [module.marking.apply_async((i,)) for i in range(3)]
        called = {
            name: [getattr(module, name).apply_async((i,)) for i in range(3)] for name in names
        }
        linked = [module.marking.apply_async((i,), link=module.follow.s()) for i in range(3)]
        chained = [(module.marking.s(i) | module.follow.s()).apply_async() for i in range(3)]
        for outcome in ("succeed", "fail"):
            for _ in range(3):
                module.handled.delay(outcome)
        for i in range(3):
            module.identified.delay(i)
        past = datetime.now(timezone.utc) - timedelta(seconds=1)
        module.patient.apply_async((0,), expires=past)
        module.patient.apply_async((1,))
        for i in range(24):
            module.filling.delay(i)
        site.reports.expect("filling", 24, each=lambda report: report["size"])
        seen = site.reports.expect("seen")
        # One batch of each, and three of marking; a retried batch is run again.
        batches = len(names) + 3 + 2 + 1 + 1 + (1 if expected is AFTER else 0)
        batches += len(site.reports.of("filling"))
        site.reports.expect(
            "task_postrun", batches, each=lambda report: report["task"] != "switching_app.follow"
        )
        if expected is AFTER:
            for result in chained:
                result.get(timeout=30)
            site.reports.expect("followed", 6)
        end = module.follow.delay("end")
        site.reports.expect("followed", 1, each=lambda report: report["value"] == "end")
        events.expect("task-succeeded", end.id)
        facts.update({name: [r.state for r in results] for name, results in called.items()})
        assert [result.get(timeout=30) for result in linked] == [0, 1, 2]
        assert [result.get(timeout=30) for result in observed] == [0, 1, 2]
        if expected is BEFORE:
            with pytest.raises(exceptions.TimeoutError):
                called["failing"][0].get(timeout=0.1)
    if python != sys.executable:
        assert worker.batches == []  # Its log has other words for it.
    followed = [report["value"] for report in site.reports.of("followed")]
    facts["expired is run"] = any(0 in report["args"] for report in seen)
    facts["followed by link"] = facts["followed by chain"] = (len(followed) - 1) // 2
    handlers = [
        r["event"] for r in site.reports.items if r["event"] in ("on_success", "on_failure")
    ]
    facts["handlers"] = sorted(handlers)
    (identified,) = site.reports.of("identified")
    facts["has an id of its own"] = identified["id"] is not None
    failures = {"failing", "half_failing", "handled"}
    facts["task_failure"] = sum(
        report["task"].rpartition(".")[2] in failures for report in site.reports.of("task_failure")
    )
    facts["events of requests"] = sum(events.count(result.id) for result in observed)
    facts["batches fill"] = {report["size"] for report in site.reports.of("filling")} == {12}
    if expected["rejecting"] is None:
        del facts["rejecting"]
    assert facts == {name: fact for name, fact in expected.items() if name in facts}
    for results in (*called.values(), linked, chained, observed, [end]):
        for result in results:
            result.forget()


class Events:
    """The events that a worker sends."""

    def __init__(self, app):
        self.app = app
        self.stream = Stream()

    def __enter__(self):
        self.connection = self.app.connection_for_read()
        self.receiver = self.app.events.Receiver(self.connection, handlers={"*": self.stream.put})
        ready = Stream()
        self.thread = Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait(len, 1, what="event receivers")
        return self

    def _run(self, ready):
        with self.receiver.consumer_context() as (connection, _, _):
            ready.put(True)
            while not self.receiver.should_stop:
                try:
                    connection.drain_events(timeout=0.2)
                except OSError:  # Nothing came.
                    continue

    def __exit__(self, *exc_info):
        self.receiver.should_stop = True
        self.thread.join()
        self.connection.release()

    def of(self, uuid):
        return [event["type"] for event in self.stream.items if event.get("uuid") == uuid]

    def count(self, uuid):
        return len(self.of(uuid))

    def expect(self, type, uuid):
        def count(items):
            return sum(item["type"] == type and item.get("uuid") == uuid for item in items)

        self.stream.wait(count, 1, what=f"events {type} of {uuid}")
