"""Calls with an ETA or a countdown between calls without one; what `inspect` says of both."""

from datetime import datetime

from celery.utils.time import maybe_iso8601


def seconds(eta: str) -> float:
    when: datetime = maybe_iso8601(eta)
    return when.timestamp()


def test_200_calls_with_countdown_among_1000_without(broker, deploy):
    site = deploy("clicks_app", broker)
    timed = site.module.timed
    with site.app.producer_pool.acquire(block=True) as producer:
        for i in range(1200):
            countdown = 5 + i % 3 / 10 if i % 6 == 0 else None
            timed.apply_async((i,), countdown=countdown, producer=producer)
    with site.worker() as worker:
        reports = site.reports.expect("timed", 1200, each=lambda report: len(report["calls"]))
        batches = worker.wait_for_batches(1200)
        site.wait_until_active(worker, 0)
    # Each call was run once, in no batch above flush_every, and none before its time.
    calls = [(number, eta, report["now"]) for report in reports for number, eta in report["calls"]]
    assert sorted(number for number, eta, now in calls) == list(range(1200))
    assert max(len(report["calls"]) for report in reports) <= 100
    waited = [now - seconds(eta) for number, eta, now in calls if eta]
    assert len(waited) == 200
    assert min(waited) >= 0
    # The backlog became full batches; what remained at its end, part-filled ones.
    full = [batch for batch in batches if batch["size"] == "100"]
    assert len(full) >= 10
    assert {batch["trigger"] for batch in full} == {"size"}
    parts = [batch for batch in batches if batch["size"] != "100"]
    assert {batch["trigger"] for batch in parts} <= {"interval"}
    assert len(parts) <= 4
    assert site.messages_left() == 0


def test_inspect_shows_waiting_and_buffered_calls(broker, deploy):
    site = deploy("clicks_app", broker)
    patient = site.module.patient
    with site.worker() as worker:
        buffered = [patient.delay(i).id for i in range(3)]
        scheduled = [patient.apply_async((i,), countdown=600).id for i in range(2)]
        site.reports.expect("received", 5)
        inspect = site.app.control.inspect(destination=[worker.node], timeout=10)
        waiting = inspect.scheduled()[worker.node]
        assert sorted(entry["request"]["id"] for entry in waiting) == sorted(scheduled)
        assert all(entry["eta"] for entry in waiting)
        assert {entry["request"]["name"] for entry in waiting} == {patient.name}
        reserved = inspect.reserved()[worker.node]
        assert sorted(request["id"] for request in reserved) == sorted(buffered)
        assert inspect.active()[worker.node] == []
    assert site.reports.of("patient") == []
    assert site.messages_left() == 5
