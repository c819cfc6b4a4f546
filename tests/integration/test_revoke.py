"""Requests that expire or are revoked: before they come, in the buffer, and while they run."""

import os
import time
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import TaskRevokedError, WorkerLostError
from harness import DEADLINE
from kombu.utils.uuid import uuid


def send_expired(site, task):
    """Send a call that has expired already, in a way that no broker drops its message for that."""
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    call = task.AsyncResult(uuid())
    message = site.app.amqp.create_task_message(
        call.id,
        task.name,
        (0,),
        {},
        expires=past.isoformat(),
        reply_to=site.app.thread_oid,
    )
    if hasattr(site.app.backend, "on_task_call"):
        with site.app.producer_pool.acquire(block=True) as producer:
            site.app.backend.on_task_call(producer, call.id)
    site.publish(message.body, message.headers, serializer="json", **message.properties)
    return call


def sent(calls):
    return sorted(call.id for call in calls)


def ask(send, worker, *args, **options):
    """Send a command until the worker replies: with Redis, it is lost before the worker listens."""
    deadline = time.monotonic() + DEADLINE
    while not (reply := send(*args, destination=[worker.node], reply=True, timeout=2, **options)):
        assert time.monotonic() < deadline
    return reply[0][worker.node]


def processes_of(site, worker):
    stats = ask(site.app.control.broadcast, worker, "stats")
    return sorted(stats["pool"]["processes"])


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_expired_and_revoked_requests_never_reach_the_body(pool, broker, backend, deploy):
    site = deploy("revoke_app", broker, backend)
    double, pairs, control = site.module.double, site.module.pairs, site.app.control
    with site.worker(pool) as worker:
        processes = processes_of(site, worker) if pool == "prefork" else None
        # They wait in the buffer until the sixth comes.
        dropped = double.delay(1)
        stamped = double.s(2).stamp(customer="gone").apply_async()
        revoked, terminated, kept = (double.delay(i) for i in (3, 4, 5))
        site.reports.expect("received", 5)
        ask(control.revoke, worker, revoked.id)
        ask(control.revoke, worker, dropped.id)
        ask(control.revoke_by_stamped_headers, worker, {"customer": ["gone"]})
        ask(control.revoke, worker, terminated.id, terminate=True, signal="SIGKILL")
        # Revoked or expired when they are received: they take no place in a batch.
        unborn = uuid()
        ask(control.revoke, worker, unborn)
        late = [
            pairs.apply_async((6,), task_id=unborn),
            send_expired(site, pairs),
        ]
        others = [pairs.delay(i) for i in (7, 8)]
        assert [call.get(timeout=30) for call in others] == [14, 16]
        # A batch of which nothing is left is not run, and is in nobody's way.
        gone = [pairs.s(i).stamp(customer="gone").apply_async() for i in (9, 10)]
        more = [pairs.delay(i) for i in (11, 12)]
        assert [call.get(timeout=30) for call in more] == [22, 24]
        filling = double.delay(13)
        assert [call.get(timeout=30) for call in (kept, filling)] == [10, 26]
        ended = [dropped, stamped, revoked, terminated, *late, *gone]
        for call in ended:
            with pytest.raises(TaskRevokedError):
                call.get(timeout=30)
            assert call.state == "REVOKED"
        assert processes is None or processes_of(site, worker) == processes
        worker.wait_for_batches(6)
        site.wait_until_active(worker, 0)
    # The signal has told of each of them once, and it was on receipt for these two only.
    reports = {report["id"]: report for report in site.reports.of("revoked")}
    assert len(site.reports.of("revoked")) == 8
    assert sorted(reports) == sent(ended)
    assert [r["id"] for r in reports.values() if r["expired"]] == [late[1].id]
    assert not {call.id for call in late} & {r["id"] for r in site.reports.of("received")}
    # Nothing else was touched.
    bodies = site.reports.of("double") + site.reports.of("pairs")
    assert [report["ids"] for report in bodies] == [
        *([kept.id, filling.id], [call.id for call in others], [call.id for call in more])
    ]
    assert [batch["size"] for batch in worker.batches] == ["2", "2", "2"]
    assert worker.problems == []
    assert site.messages_left() == 0


def test_what_is_revoked_or_expires_while_its_batch_waits_for_a_process_is_left_out(
    broker, backend, deploy
):
    site = deploy("revoke_app", broker, backend)
    gate = site.directory / "go"
    os.mkfifo(gate)
    with site.worker(concurrency=1) as worker:
        processes = processes_of(site, worker)
        running = [site.module.gated.delay(i) for i in range(2)]
        site.reports.expect("gated")
        revoked, kept, terminated, alone = (site.module.pairs.delay(i) for i in range(4))
        moment = datetime.now(timezone.utc) + timedelta(seconds=2)
        expired = [site.module.pairs.apply_async((i,), expires=moment) for i in range(2)]
        site.reports.expect("received", 8)
        ask(site.app.control.revoke, worker, revoked.id)
        ask(site.app.control.revoke, worker, terminated.id, terminate=True, signal="SIGKILL")
        # No event tells that a moment has passed, and the only process is kept busy.
        time.sleep((moment - datetime.now(timezone.utc)).total_seconds() + 0.1)
        gate.write_text("now")
        assert [call.get(timeout=30) for call in running] == [0, 2]
        assert [call.get(timeout=30) for call in (kept, alone)] == [2, 6]
        for call in (revoked, terminated, *expired):
            with pytest.raises(TaskRevokedError):
                call.get(timeout=30)
            assert call.state == "REVOKED"
        assert processes_of(site, worker) == processes
        site.wait_until_active(worker, 0)
    assert [report["ids"] for report in site.reports.of("pairs")] == [[kept.id], [alone.id]]
    assert sorted(report["id"] for report in site.reports.of("revoked")) == sent(
        [revoked, terminated, *expired]
    )
    assert worker.problems == []
    assert site.messages_left() == 0


@pytest.mark.parametrize("how", ["id", "stamp"])
def test_terminating_a_running_request_ends_its_process_and_nothing_else(
    how, broker, backend, deploy
):
    site = deploy("revoke_app", broker, backend)
    gate = site.directory / "go"
    os.mkfifo(gate)
    control = site.app.control
    with site.worker() as worker:
        running = [site.module.gated.delay(i) for i in range(2)]
        site.reports.expect("gated")
        before, victim, after = calls = [
            site.module.hang.s(i).stamp(number=str(i)).apply_async() for i in range(3)
        ]
        (hanging,) = site.reports.expect("hang")
        site.wait_until_active(worker, 5)
        if how == "id":
            ask(control.revoke, worker, victim.id, terminate=True, signal="SIGKILL")
        else:
            ask(
                control.revoke_by_stamped_headers,
                worker,
                {"number": ["1"]},
                terminate=True,
                signal="SIGKILL",
            )
        with pytest.raises(TaskRevokedError):
            victim.get(timeout=30)
        assert victim.state == "REVOKED"
        for call in (before, after):
            with pytest.raises(WorkerLostError):
                call.get(timeout=30)
        with pytest.raises(ProcessLookupError):
            os.kill(hanging["pid"], 0)
        # What ran beside it goes on, and so does the worker.
        gate.write_text("now")
        assert [call.get(timeout=30) for call in running] == [0, 2]
        later = [site.module.pairs.delay(i) for i in range(2)]
        assert [call.get(timeout=30) for call in later] == [0, 2]
        site.wait_until_active(worker, 0)
    (revoked,) = site.reports.of("revoked")
    assert revoked["id"] == victim.id
    assert revoked["terminated"]
    assert [report["ids"] for report in site.reports.of("hang")] == [[call.id for call in calls]]
    lost = [line for line in worker.problems if "Batch hang[" in line]
    assert len(lost) == 1
    assert "of 2 requests was lost" in lost[0]
    assert site.messages_left() == 0


def test_neighbours_of_a_terminated_request_run_again_if_the_broker_still_has_them(
    broker, backend, deploy
):
    site = deploy("revoke_app", broker, backend)
    with site.worker() as worker:
        before, victim, after = (site.module.hang_late.delay(i) for i in range(3))
        site.reports.expect("hang")
        site.wait_until_active(worker, 3)
        ask(site.app.control.revoke, worker, victim.id, terminate=True, signal="SIGKILL")
        with pytest.raises(TaskRevokedError):
            victim.get(timeout=30)
        assert before.get(timeout=30) == 0
        assert after.get(timeout=30) == 4
        site.wait_until_active(worker, 0)
    first, *others = site.reports.of("hang")
    assert first["ids"] == [before.id, victim.id, after.id]
    assert sorted(i for report in others for i in report["ids"]) == sent([before, after])
    assert [report["id"] for report in site.reports.of("revoked")] == [victim.id]
    assert victim.state == "REVOKED"
    assert site.messages_left() == 0


@pytest.mark.gevent
@pytest.mark.parametrize("how", ["id", "stamp"])
def test_terminating_a_running_request_of_a_greenlet(how, redis_url, deploy):
    gevent = pytest.importorskip("celery.concurrency.gevent")
    if "terminate_job" not in vars(gevent.TaskPool):
        pytest.skip("this Celery cannot end a greenlet")
    site = deploy("revoke_app", redis_url, redis_url)
    with site.worker("gevent") as worker:
        before, victim, after = calls = [
            site.module.hang.s(i).stamp(number=str(i)).apply_async() for i in range(3)
        ]
        site.reports.expect("hang")
        site.wait_until_active(worker, 3)
        control = site.app.control
        if how == "id":
            ask(control.revoke, worker, victim.id, terminate=True)
        else:
            ask(control.revoke_by_stamped_headers, worker, {"number": ["1"]}, terminate=True)
        with pytest.raises(TaskRevokedError):
            victim.get(timeout=30)
        for call in (before, after):
            with pytest.raises(WorkerLostError):
                call.get(timeout=30)
        later = [site.module.pairs.delay(i) for i in range(2)]
        assert [call.get(timeout=30) for call in later] == [0, 2]
        site.wait_until_active(worker, 0)
    assert [report["id"] for report in site.reports.of("revoked")] == [victim.id]
    assert [report["ids"] for report in site.reports.of("hang")] == [[call.id for call in calls]]
    assert site.messages_left() == 0
