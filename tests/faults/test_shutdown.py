"""The promises of `docs/stopping.rst`: what becomes of each request when a worker stops.

Ordinary tasks are on the same workers: what is not said to differ is as it is for them.
"""

import os
import signal
import socket
from collections import Counter
from contextlib import contextmanager
from threading import Event, Thread

import pytest
from celery import VERSION

KINDS = ["early", "late"]
SENT_BACK = ["waiting", "buffered", "eta", "held"]

#: For Celery before 5.5, a process that a cold shutdown ends was lost.
CANCELS = VERSION >= (5, 5)
CANCELLED = {"task-cancelled", "on_retry", "task_retry"}


#: What a cancelled task announces.
CANCELLATION = {"on_retry", "task_retry", "task-cancelled"}


class Scene:
    """A worker with requests in every place where they can be when it is told to stop."""

    def __init__(self, site):
        self.site = site
        self.reports = site.reports
        #: The ids of the requests, by kind, task and place.
        self.ids = {}
        self.calls = {}
        for name in ("go", "never", "clean"):
            os.mkfifo(site.directory / name)

    def send(self, kind, task, place, count, *args, **options):
        calls = [
            getattr(self.site.module, task)[kind].apply_async(args, **options) for _ in range(count)
        ]
        self.ids[kind, task, place] = [call.id for call in calls]
        self.calls.update({call.id: call for call in calls})

    def ended(self, worker, code):
        """Wait for the worker to have ended with that code, if any, and for its last report."""
        assert worker.process.wait(40) == code or code is None
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b'{"event": "last"}', self.reports.path)
        self.reports.expect("last")

    def each(self, task, place, count, *args, **options):
        for kind in KINDS:
            self.send(kind, task, place, count, *args, **options)

    def fill(self, worker, gate="go"):
        """Send so much that four processes are busy, and more of everything waits."""
        self.each("limited", "done", 3)
        self.reports.expect("ended", 2)
        self.each("batch", "running", 3, gate)
        self.each("plain", "running", 1, gate)
        self.site.wait_until_active(worker, 8)
        self.each("batch", "waiting", 3, gate)
        self.each("plain", "waiting", 1, gate)
        self.each("batch", "buffered", 2, gate)
        self.each("limited", "held", 3)
        self.each("batch", "eta", 1, gate, countdown=600)
        self.each("plain", "eta", 1, gate, countdown=600)
        self.reports.expect("received", len(self.calls))
        self.site.wait_until_active(worker, 8, waiting=2 * (3 + 1 + 2 + 3))

    def at(self, *places, kind=None):
        """Return the ids of the requests in these places."""
        return sorted(
            i
            for (its_kind, _, place), ids in self.ids.items()
            for i in ids
            if place in places and kind in (None, its_kind)
        )

    def of(self, event):
        return sorted(i for report in self.reports.of(event) for i in ids_in(report))

    @contextmanager
    def open(self, gate):
        """Let go whatever waits at a gate, or comes to it."""
        with (self.site.directory / gate).open("w"):
            yield

    @contextmanager
    def open_later(self, gate):
        """Let go whatever comes to a gate, once something does."""
        opener = Thread(target=self._hold, args=(gate, done := Event()), daemon=True)
        opener.start()
        yield
        done.set()

    def _hold(self, gate, done):
        with self.open(gate):
            done.wait()

    def pass_visibility_timeout(self):
        """Have Redis deliver again what nobody has acknowledged."""
        with self.site.app.connection_for_read() as connection:
            channel = connection.default_channel
            channel.visibility_timeout = 0
            channel.qos.restore_visible(num=1000)

    def announced(self, task_id):
        """Return what a worker said of a request, other than that it was received and run."""
        said = [report for report in self.reports.items if task_id in ids_in(report)]
        return {report.get("type", report["event"]) for report in said} - {"received", "run"}

    def check_like_twins(self, place):
        """Batches and ordinary tasks in that place have met with the same.

        Celery cancels what is done too, if its main process has not read the result, and may store
        that an ordinary task is retried.
        """
        for kind in KINDS:
            (twin,) = self.ids[kind, "plain", place]
            announced, state = self.announced(twin), self.calls[twin].state
            is_done = "task-succeeded" in announced
            ignored = CANCELLATION if is_done else set()
            expected = announced - ignored, "SUCCESS" if is_done else state
            for member in self.ids[kind, "batch", place]:
                heard = self.announced(member) - ignored
                assert (heard, self.calls[member].state) == expected

    def take_messages(self):
        """Take all messages from the queue; return their ids."""
        ids = []
        with self.site.app.connection_for_read() as connection:
            queue = self.site.app.amqp.queues[self.site.queue](connection.default_channel)
            while (message := queue.get()) is not None:
                assert message.payload[0] in ([], [None], ["go"], ["never"])
                ids.append(message.headers["id"])
                message.ack()
        return sorted(ids)


def ids_in(report):
    return report.get("ids", [report.get("id")])


@pytest.fixture
def scene(deploy, broker, backend):
    def scene(**config):
        return Scene(deploy("shutdown_app", broker, backend, **config))

    return scene


def send_term(scene, worker):
    worker.process.send_signal(signal.SIGTERM)


def send_int(scene, worker):
    worker.process.send_signal(signal.SIGINT)


def send_quit(scene, worker):
    """Only when it is idle: Celery's handler talks to the broker, whatever it interrupts."""
    worker.process.send_signal(signal.SIGQUIT)


def send_int_twice(scene, worker):
    send_int(scene, worker)
    # Only now does it wait for what runs.
    worker.wait_for_log("Stopping Pool")
    send_int(scene, worker)


def send_remote(scene, worker):
    scene.site.app.control.shutdown(destination=[worker.node])


@pytest.mark.parametrize(
    ("stop", "code", "pool"),
    [
        pytest.param(send_term, 0, "prefork", id="TERM-prefork"),
        pytest.param(send_int, 1, "threads", id="INT-threads"),
        # Celery 5.7 and newer exit with 0.
        pytest.param(send_remote, None, "prefork", id="remote-prefork"),
    ],
)
def test_warm_shutdown(stop, code, pool, broker, scene):
    scene = scene()
    with scene.site.worker(pool, concurrency=4, exits=code) as worker:
        scene.fill(worker)
        stop(scene, worker)
        if broker.startswith("amqp"):
            # While the batches go on running, what was only buffered is back in the queue.
            scene.site.wait_for_messages(len(scene.at("buffered", "held")))
        assert scene.of("ended") == scene.at("done")
        with scene.open("go"):
            scene.ended(worker, code)
    # Threads start what waits until the worker has got to its pool: all of a batch, or none.
    late = sorted(set(scene.at("waiting")) & set(scene.of("run"))) if pool == "threads" else []
    ran = sorted([*scene.at("done", "running"), *late])
    assert scene.of("run") == scene.of("ended") == scene.of("ack") == ran
    assert scene.take_messages() == sorted(set(scene.at(*SENT_BACK)) - set(late))
    scene.check_like_twins("running")
    if not late:
        scene.check_like_twins("waiting")


def test_another_worker_runs_what_was_only_buffered(broker, scene):
    scene = scene()
    with scene.site.worker(concurrency=1) as worker:
        scene.send("late", "batch", "running", 3, "go")
        scene.site.wait_until_active(worker, 3)
        scene.send("late", "batch", "buffered", 2, None)
        scene.reports.expect("received", 5)
        send_term(scene, worker)
        if broker.startswith("amqp"):
            scene.site.wait_for_messages(2)
        else:
            with scene.open("go"):
                scene.ended(worker, 0)
        with scene.site.worker() as other:
            # What comes again may have cost a process, for all that this worker knows: it runs
            # beside what is new.
            scene.send("late", "batch", "new", 3, None)
            scene.reports.expect("ack", 5 if broker.startswith("amqp") else 8)
            scene.site.wait_until_active(other, 0)
        if broker.startswith("amqp"):
            with scene.open("go"):
                scene.ended(worker, 0)
    assert scene.of("run") == scene.of("ack") == scene.at("running", "buffered", "new")
    assert len(scene.reports.of("run")) == 3
    # The first worker has not had them back.
    assert scene.of("received") == sorted([*scene.calls, *scene.at("buffered")])
    assert scene.site.messages_left() == 0


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(send_quit, id="QUIT"),
        pytest.param(
            send_int_twice,
            id="INT-INT",
            marks=pytest.mark.skipif(not CANCELS, reason="this Celery does not heed the second"),
        ),
        pytest.param(send_term, id="REMAP_SIGTERM"),
    ],
)
def test_cold_shutdown(stop, broker, scene, monkeypatch):
    scene = scene()
    if stop is send_term:
        monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    code = 1 if stop is send_int_twice else 0
    with scene.site.worker(concurrency=4, loglevel="DEBUG", exits=code) as worker:
        scene.fill(worker, "never")
        stop(scene, worker)
        if CANCELS:
            # Each member has been told by now, and the process of a batch was told but once.
            scene.reports.expect("terminated", 4)
            scene.reports.expect("sent", len(scene.at("done", "running")))
        with scene.open("clean"):
            scene.reports.expect("cleaned up", 4)
        scene.ended(worker, code)
    assert scene.of("run") == scene.at("done", "running")
    assert scene.of("cleaned up") == scene.at("running")
    kept = scene.at("running", kind="late") if CANCELS else []
    assert scene.of("ack") == sorted(set(scene.at("done", "running")) - set(kept))
    assert scene.take_messages() == sorted([*scene.at(*SENT_BACK), *kept])
    for place in ("running", "waiting"):
        scene.check_like_twins(place)
    if CANCELS:
        for kind, said in {"early": CANCELLED, "late": {"task-cancelled"}}.items():
            (twin,) = scene.ids[kind, "plain", "running"]
            assert scene.announced(twin) & CANCELLED == said


@pytest.mark.skipif(not CANCELS, reason="this Celery does not try")
def test_a_cold_shutdown_cannot_end_threads(broker, scene):
    scene = scene()
    with scene.site.worker("threads", concurrency=4, exits=None) as worker:
        scene.fill(worker)
        send_quit(scene, worker)
        # Celery finds that out too late, and goes on as for a warm shutdown. What it exits with
        # depends on what its event loop was doing.
        worker.wait_for_log("does not implement kill_job")
        with scene.open("go"):
            scene.ended(worker, None)
    late = sorted(set(scene.at("waiting")) & set(scene.of("run")))
    ran = sorted([*scene.at("done", "running"), *late])
    assert scene.of("run") == scene.of("ended") == scene.of("ack") == ran
    assert scene.take_messages() == sorted(set(scene.at(*SENT_BACK)) - set(late))
    scene.check_like_twins("running")


@pytest.mark.skipif(not CANCELS, reason="soft shutdown is of Celery 5.5")
def test_soft_shutdown(broker, scene):
    scene = scene(worker_soft_shutdown_timeout=6)
    with scene.site.worker(concurrency=8) as worker:
        for place, gate in {"quick": "go", "running": "never"}.items():
            scene.each("batch", place, 3, gate)
            scene.each("plain", place, 1, gate)
        scene.site.wait_until_active(worker, 16)
        scene.each("batch", "waiting", 3, "never")
        scene.each("batch", "buffered", 2, "never")
        scene.reports.expect("received", len(scene.calls))
        scene.site.wait_until_active(worker, 16, waiting=2 * (3 + 2))
        send_quit(scene, worker)
        worker.wait_for_log("Initiating Soft Shutdown")
        with scene.open("go"), scene.open_later("clean"):
            scene.ended(worker, 0)
    assert scene.of("run") == scene.at("quick", "running")
    assert scene.of("ended") == scene.at("quick")
    assert scene.of("terminated") == scene.at("running")
    assert scene.of("ack") == sorted([*scene.at("quick"), *scene.at("running", kind="early")])
    back = [*scene.at("waiting", "buffered"), *scene.at("running", kind="late")]
    assert scene.take_messages() == sorted(back)
    for place in ("quick", "running"):
        scene.check_like_twins(place)


@pytest.mark.skipif(not CANCELS, reason="soft shutdown is of Celery 5.5")
@pytest.mark.parametrize("on_idle", [True, False])
def test_a_soft_shutdown_with_nothing_but_buffered_requests(on_idle, broker, scene):
    scene = scene(worker_soft_shutdown_timeout=1, worker_enable_soft_shutdown_on_idle=on_idle)
    with scene.site.worker(concurrency=1) as worker:
        scene.each("batch", "buffered", 2, "never")
        scene.site.wait_until_active(worker, 0, waiting=4)
        send_quit(scene, worker)
        scene.ended(worker, 0)
    assert ("Initiating Soft Shutdown" in worker.text) is on_idle
    assert scene.of("run") == []
    assert scene.take_messages() == scene.at("buffered")


def test_a_main_process_that_is_killed(broker, scene):
    scene = scene()
    with scene.site.worker(concurrency=4, exits=-signal.SIGKILL) as worker:
        scene.fill(worker, "never")
        worker.process.kill()
        scene.ended(worker, -signal.SIGKILL)
    back = [*scene.at(*SENT_BACK), *scene.at("running", kind="late")]
    if broker.startswith("redis"):
        assert scene.site.messages_ready() == 0
        scene.pass_visibility_timeout()
    scene.site.wait_for_messages(len(back))
    assert scene.take_messages() == sorted(back)
    assert scene.of("run") == scene.at("done", "running")
    assert scene.of("ack") == sorted([*scene.at("done"), *scene.at("running", kind="early")])
    scene.check_like_twins("running")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_pool_restart(pool, broker, scene):
    scene = scene(worker_pool_restarts=True)
    with scene.site.worker(pool, concurrency=2) as worker:
        scene.each("batch", "running", 3, "go")
        scene.site.wait_until_active(worker, 6)
        scene.each("batch", "waiting", 3, None)
        scene.each("batch", "buffered", 2, None)
        scene.site.wait_until_active(worker, 6, waiting=2 * (3 + 2))
        (reply,) = scene.site.app.control.broadcast(
            "pool_restart", destination=[worker.node], reply=True, timeout=20
        )
        assert "ok" in reply[worker.node]
        with scene.open("go"):
            scene.reports.expect("ended", 4)
        scene.each("batch", "last", 1, None)
        scene.reports.expect("ack", len(scene.at("running", "waiting", "buffered", "last")))
        scene.site.wait_until_active(worker, 0)
    everything = scene.at("running", "waiting", "buffered", "last")
    assert scene.of("run") == scene.of("ended") == scene.of("ack") == everything
    assert {len(report["ids"]) for report in scene.reports.of("run")} == {3}
    assert scene.site.messages_left() == 0
    old, new = (
        {report["pid"] for report in scene.reports.of("run") if set(report["ids"]) & ids}
        for ids in (set(scene.at("running")), set(scene.at("waiting", "buffered")))
    )
    assert old.isdisjoint(new) == (pool == "prefork")


@pytest.mark.parametrize(
    ("option", "value", "batches"),
    [("worker_max_tasks_per_child", 2, 2), ("worker_max_memory_per_child", 1, 1)],
)
def test_a_process_that_is_replaced_has_run_that_many_batches(
    option, value, batches, broker, scene
):
    scene = scene(**{option: value})
    kinds = KINDS[:batches]
    with scene.site.worker(concurrency=1) as worker:
        for kind in kinds:
            scene.send(kind, "batch", "done", 3, None)
            scene.send(kind, "batch", "buffered", 2, None)
        scene.reports.expect("ack", 3 * len(kinds))
        scene.site.wait_until_active(worker, 0, waiting=2 * len(kinds))
        for kind in kinds:
            scene.send(kind, "batch", "last", 1, None)
        scene.reports.expect("ack", 6 * len(kinds))
        scene.site.wait_until_active(worker, 0)
    everything = scene.at("done", "buffered", "last")
    assert scene.of("run") == scene.of("ended") == scene.of("ack") == everything
    assert {len(report["ids"]) for report in scene.reports.of("run")} == {3}
    served = Counter(report["pid"] for report in scene.reports.of("run"))
    assert set(served.values()) == {batches}
    assert scene.site.messages_left() == 0


def test_what_a_process_has_taken_in_silence_is_delivered_again(broker, scene):
    """Celery forgets what its pool processes have not said they have started on: any task."""
    scene = scene()
    with scene.site.worker(concurrency=1, loglevel="DEBUG") as worker:
        scene.each("limited", "done", 3)
        scene.reports.expect("ended", 2)
        scene.site.wait_until_active(worker, 0)
        (stats,) = scene.site.app.control.inspect(destination=[worker.node]).stats().values()
        (process,) = stats["pool"]["processes"]
        os.kill(process, signal.SIGSTOP)
        scene.send("early", "batch", "silent", 3, None)
        # By then, it has been written to the pipe.
        scene.site.wait_until_active(worker, 0, waiting=3)
        send_term(scene, worker)
        worker.wait_for_log("Stopping Pool")
        os.kill(process, signal.SIGCONT)
        scene.reports.expect("ended", 3)
        # Nobody listens to it: it would wait for half a minute.
        os.kill(process, signal.SIGKILL)
        scene.ended(worker, 0)
    assert scene.of("run") == scene.at("done", "silent")
    again = set(scene.take_messages())
    assert again in (set(), set(scene.ids["early", "batch", "silent"]))
