"""Signals, `current_task`, custom `__call__` and `Request` classes, acknowledgements."""

import os

import pytest


def test_signals_bracket_the_batch_and_task_received_tells_of_each_call(broker, deploy):
    site = deploy("signals_app", broker)
    calls = [site.module.watched.delay(i) for i in range(6)]
    with site.worker():
        site.reports.expect("task_postrun", 2)
    bodies = site.reports.of("body")
    ids = sorted(call.id for call in calls)
    assert sorted(report["id"] for report in site.reports.of("task_received")) == ids
    assert sorted(member for body in bodies for member in body["members"]) == ids
    batches = sorted(body["batch"] for body in bodies)
    assert len(set(batches)) == 2
    assert not set(batches) & set(ids)
    assert sorted(body["current"] for body in bodies) == batches
    assert {body["name"] for body in bodies} == {"signals_app.watched"}
    for signal in ("task_prerun", "task_postrun"):
        assert sorted(report["id"] for report in site.reports.of(signal)) == batches
    assert {report["state"] for report in site.reports.of("task_postrun")} == {"SUCCESS"}
    assert len(site.reports.of("task_success")) == 2
    assert site.reports.of("task_failure") == []
    assert [report["sizes"] for report in site.reports.of("called")] == [[3], [3]]


def test_an_exception_of_the_body_reaches_every_caller(broker, backend, deploy):
    site = deploy("signals_app", broker, backend)
    calls = [site.module.failing.delay(i) for i in range(3)]
    with site.worker() as worker:
        for call in calls:
            with pytest.raises(KeyError, match="no such luck"):
                call.get(timeout=30)
        failed = site.reports.expect("request failed", 3)
        (batch,) = worker.wait_for_batches(3)
        site.wait_until_active(worker, 0)
    assert batch["ending"] == "raised unexpected"
    assert sorted(report["id"] for report in failed) == sorted(call.id for call in calls)
    assert len(site.reports.of("task_failure")) == 1
    assert len(site.reports.of("task_postrun")) == 1
    assert site.reports.of("task_success") == []
    assert site.messages_left() == 0


@pytest.mark.parametrize("name", ["early", "late"])
def test_when_calls_are_acknowledged_and_custom_request_classes(name, broker, deploy):
    site = deploy("signals_app", broker)
    gate = site.directory / "go"
    os.mkfifo(gate)
    ids = sorted(getattr(site.module, name).delay(i).id for i in range(3))
    with site.worker() as worker:
        site.reports.expect("started")
        if name == "early":
            site.reports.expect("ack", 3)
        assert len(site.reports.of("ack")) == (3 if name == "early" else 0)
        gate.write_text("now")
        site.reports.expect("ack", 3)
        site.wait_until_active(worker, 0)
    events = [report["event"] for report in site.reports.items]
    if name == "early":
        assert max(i for i, event in enumerate(events) if event == "ack") < events.index("ended")
    else:
        assert events.index("ended") < events.index("ack")
    assert sorted(report["id"] for report in site.reports.of("ack")) == ids
    assert sorted(report["id"] for report in site.reports.of("request accepted")) == ids
    assert site.reports.of("request failed") == []
    assert site.messages_left() == 0
