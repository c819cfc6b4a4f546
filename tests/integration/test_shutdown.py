"""A worker that is told to stop: what runs, and what is only buffered."""

import os
import signal

import pytest


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("name", ["early", "late"])
def test_warm_shutdown(name, pool, broker, deploy):
    site = deploy("signals_app", broker)
    task = getattr(site.module, name)
    gate = site.directory / "go"
    os.mkfifo(gate)
    with site.worker(pool, concurrency=1) as worker:
        running = [task.delay(i).id for i in range(3)]
        site.reports.expect("started")
        if name == "early":
            site.reports.expect("ack", 3)
        buffered = [task.delay(i).id for i in range(2)]
        site.reports.expect("task_received", 5)
        worker.process.send_signal(signal.SIGTERM)
        if broker.startswith("amqp"):
            # While the batch goes on running, what was only buffered is back in the queue.
            site.wait_for_messages(2)
        assert site.reports.of("ended") == []
        gate.write_text("now")
        assert worker.process.wait(40) == 0
    assert sorted(report["id"] for report in site.reports.of("ack")) == sorted(running)
    assert site.messages_left() == 2
    with site.worker(pool):
        third = task.delay(2).id
        site.reports.expect("started", 2)
        gate.write_text("now")
        site.reports.expect("ack", 6)
    last = [report["id"] for report in site.reports.of("ack")][3:]
    assert sorted(last) == sorted([*buffered, third])
    assert len(site.reports.of("started")) == 2
    assert site.messages_left() == 0
