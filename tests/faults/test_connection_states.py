"""The connection is lost while calls are in every state that a worker can have them in.

The faults: the broker closes the connection; it is stopped and started again; the network drops all
packets; the main process is stopped, or runs a body, until RabbitMQ has missed its heartbeats.
Every pool and every broker meets each of the first three once. What is promised, and shown:

* What is in the buffer, held back by a rate limit, waiting for its ETA or for a free process or
  thread is not run from there. The broker delivers it again, and it runs exactly once.
* A batch that runs goes on, and ends. With early acknowledgement it runs exactly once. With late
  acknowledgement it runs again, since the broker has not heard that it has ended; if
  ``worker_cancel_long_running_tasks_on_connection_loss`` says so, it is ended before that.
* After that batches fill by size and by interval, none is larger than `flush_every`, no request is
  left reserved, active or in the queue, and the prefetch count is what it was.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import chain, count

import brokers
import pytest
from celery import VERSION
from celery.app.defaults import NAMESPACES
from faults.proxy import Proxy
from harness import DEADLINE
from kombu import pools
from kombu.transport.redis import MultiChannelPoller
from redis import Redis

needs_brpop_health = pytest.mark.skipif(
    not hasattr(MultiChannelPoller, "maybe_check_brpop_health"),
    reason="this Kombu does not notice that the network is frozen",
)


#: Without it, Celery restores the prefetch count after a reconnect from whatever thread or greenlet
#: acknowledges a message, in the middle of what others say on that connection.
HAS_OPTION = "enable_prefetch_count_reduction" in NAMESPACES["worker"]
needs_option = pytest.mark.skipif(
    not HAS_OPTION, reason="this Celery mixes up what its threads say on AMQP after a reconnect"
)


class Gate:
    """Bodies wait at it until the test opens it."""

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory(prefix="gate-")
        self.path = os.path.join(self._directory.name, "socket")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen(100)
        self._socket.setblocking(False)

    def open(self):
        """Let all go that wait, and all that will come."""
        os.unlink(self.path)
        waiting = []
        try:
            while True:
                waiting.append(self._socket.accept()[0])
        except BlockingIOError:
            self._socket.close()
        for bodies in waiting:
            bodies.close()

    def close(self):
        if os.path.exists(self.path):
            self.open()
        self._directory.cleanup()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setenv("GATE", gate.path)
    yield gate
    gate.close()


@contextmanager
def closed(case):
    """The broker closes every connection, and takes new ones."""
    if case.is_redis:
        with Redis.from_url(case.server.url) as client:
            for address in case.proxy.clients:
                client.client_kill_filter(addr=address)
    else:
        command = [brokers.find_program("rabbitmqctl"), "close_all_connections", "by a test"]
        environment = {**brokers._environment(), **case.server.environment}
        subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    if case.pool != "solo":  # It is busy.
        case.wait_until_connected(2)
    yield


@contextmanager
def restarted(case):
    """The broker is stopped, and is back later."""
    case.server.stop()
    yield
    case.server.start()


@contextmanager
def frozen(case):
    """The network drops every packet, until somebody has given up waiting for an answer."""
    case.proxy.freeze()
    yield
    if case.is_redis:
        # Kombu takes another connection to poll with, and Celery need not hear of it.
        case.worker.wait_for_log("Connection to broker lost|dropping stale connection")
    else:
        case.worker.wait_for_log("Connection to broker lost")
        case.proxy.cut()
    case.proxy.thaw()


@contextmanager
def suspended(case):
    """The main process is stopped, until the broker has given it up."""
    main = case.worker.process
    main.send_signal(signal.SIGSTOP)
    try:
        case.wait_until_given_up()
        if case.pool != "prefork":  # All is one process.
            main.send_signal(signal.SIGCONT)
        yield
    finally:
        main.send_signal(signal.SIGCONT)


@contextmanager
def silent(case):
    """A body runs in the main process, which sends no heartbeats, for as long."""
    case.wait_until_given_up()
    yield


#: Nobody notices these losses at once: batches that wait for the pool may begin to run after them.
UNNOTICED = (frozen, suspended, silent)


class Case:
    """A worker that will lose its connection, and calls with a number each."""

    def __init__(self, server, proxy, site, worker, pool):
        self.server = server
        self.proxy = proxy
        self.site = site
        self.worker = worker
        self.pool = pool
        self.is_redis = server.url.startswith("redis")
        #: The connection over which it gets messages. On others, Celery sends no heartbeats.
        self.consumes_by = proxy.clients[0]
        self._numbers = count()

    def wait_until_given_up(self):
        """Wait until RabbitMQ has closed the connection, since no heartbeats come."""
        deadline = time.monotonic() + DEADLINE
        while self.consumes_by in self.proxy.clients:
            assert time.monotonic() < deadline

    def wait_until_connected(self, times):
        self.worker.wait_for_log(r"\] Connected to ", times)

    def send(self, tasks, each, *args, **options):
        """Call each of these tasks so many times; return the numbers of the calls."""
        calls = [(next(self._numbers), task) for task in tasks.values() for _ in range(each)]
        for number, task in calls:
            task.apply_async((number, *args), **options)
        return [number for number, _ in calls]

    def hold(self, kind):
        """Have a batch of this kind run until the gate is opened; return its calls."""
        numbers = self.send({kind: self.site.module.running[kind]}, 2, "hold")
        self.wait("run", numbers)
        return numbers

    def wait(self, event, numbers):
        """Wait until each of these calls has been reported."""
        wanted = set(numbers)

        def count(items):
            seen = (item["numbers"] for item in items if item["event"] == event)
            return len(wanted.intersection(*[chain.from_iterable(seen)]))

        self.site.reports.wait(count, len(wanted), what=f"of calls {numbers} in {event!r}")

    def wait_until_at_rest(self):
        """Wait until the worker knows of nothing that runs or waits, but for an ETA."""
        # With this pool, Celery 5.3 never hears of a task that runs when the connection is lost.
        if self.pool != "prefork" or VERSION >= (5, 7):
            self.site.wait_until_active(self.worker, 0)

    def times(self, event, numbers):
        """How often these calls were reported, in all that are."""
        seen = Counter(n for report in self.site.reports.of(event) for n in report["numbers"])
        return [seen[number] for number in numbers]

    def ask(self, command, *args):
        """Ask the worker until it replies."""
        inspect = self.site.app.control.inspect(destination=[self.worker.node], timeout=2)
        deadline = time.monotonic() + DEADLINE
        while not (reply := getattr(inspect, command)(*args)):
            assert time.monotonic() < deadline
        return reply[self.worker.node]

    def wait_for_room(self, beyond, *, least, most):
        """Wait until that many messages more may come: for a second, full batches are expected."""
        deadline = time.monotonic() + DEADLINE
        while not least <= (room := self.ask("stats")["prefetch_count"] - beyond) <= most:
            assert time.monotonic() < deadline, f"there is room for {room} more"

    def forget_connections(self):
        """Send calls with new connections: the broker may have closed those that there are."""
        pools.connections.clear()
        pools.producers.clear()
        self.site.app._after_fork()

    def restore_what_was_taken_before(self, moment):
        """Have Redis deliver again what an old connection took with it, as it does an hour later.

        Kombu does it when it closes a connection, if the broker answers then. For what is left
        there is the visibility time-out, which passes here and now.
        """
        if not self.is_redis:
            return
        with Redis.from_url(self.server.url) as client:
            for key in client.scan_iter(match=f"*{self.site.queue}*unacked_index", count=1000):
                for tag in client.zrangebyscore(key, 0, moment):
                    client.zadd(key, {tag: 1}, xx=True)
            # A lock of one who was restoring when the connection broke. It does not last as long.
            for key in client.scan_iter(match=f"*{self.site.queue}*unacked_mutex", count=1000):
                client.delete(key)
        # Workers without an event loop hardly ever come to that by themselves.
        with self.site.app.connection_for_read() as connection:
            connection.default_channel.qos.restore_visible(num=None, interval=1)


#: What makes Celery notice that the network is frozen: on AMQP, besides `broker_heartbeat`, since
#: it waits for the broker when it changes the prefetch count.
NOTICE = {
    "rabbitmq": {"read_timeout": 3, "write_timeout": 3},
    "redis": {"socket_timeout": 2, "socket_connect_timeout": 2, "health_check_interval": 2},
}


@contextmanager
def working(server, deploy, monkeypatch, pool, **config):
    """A worker that is connected through a proxy, in a case of its own."""
    kind = "redis" if server.url.startswith("redis") else "rabbitmq"
    site = deploy(
        "connections_app",
        server.url,
        broker_heartbeat=2,
        worker_enable_prefetch_count_reduction=False,
        **config,
    )
    options = {**site.config.get("broker_transport_options", {}), **NOTICE[kind]}
    with (site.directory / "celeryconfig.py").open("a") as file:
        file.write(f"broker_transport_options = {options!r}\n")
    with Proxy(server.url) as proxy:
        # For the worker, not for the calls.
        site.app.conf.broker_url = server.url
        monkeypatch.setenv("CELERY_BROKER_URL", proxy.url)
        # The network may be frozen for long. A worker that sends its heartbeat as an event then
        # publishes it again and again, and its loop does nothing else until it can.
        concurrency = 10 if pool == "gevent" else 2
        with site.worker(pool, "--without-heartbeat", concurrency=concurrency) as worker:
            monkeypatch.delenv("CELERY_BROKER_URL")
            yield Case(server, proxy, site, worker, pool)
            if pool == "gevent" and kind == "rabbitmq":
                # After a reconnect, Celery 5.7 may not stop then, whatever its tasks are.
                worker.stop = lambda: worker.kill() or 0


#: But not Redis that is restarted with an event loop: Celery 5.7.0 ends with an AttributeError
#: there, if any message of any task is not acknowledged.
CASES = [
    ("rabbitmq", "prefork", closed),
    ("redis", "threads", closed),
    ("redis", "solo", closed),
    pytest.param("rabbitmq", "gevent", closed, marks=needs_option),
    ("rabbitmq", "prefork", restarted),
    pytest.param("rabbitmq", "threads", restarted, marks=needs_option),
    ("rabbitmq", "solo", restarted),
    ("redis", "gevent", restarted),
    ("rabbitmq", "prefork", frozen),
    pytest.param("redis", "threads", frozen, marks=needs_brpop_health),
    ("rabbitmq", "solo", frozen),
    pytest.param("redis", "gevent", frozen, marks=needs_brpop_health),
    ("rabbitmq", "prefork", suspended),
    pytest.param("rabbitmq", "threads", suspended, marks=needs_option),
    ("rabbitmq", "solo", silent),
]


def with_marks(case):
    """A case of `CASES` as a parameter, with an id and the marks for what it needs."""
    broker, pool, lose = getattr(case, "values", case)
    marks = [*getattr(case, "marks", ()), getattr(pytest.mark, broker)]
    if pool == "gevent":
        marks.append(pytest.mark.gevent)
    return pytest.param(broker, pool, lose, id=f"{lose.__name__}-{broker}-{pool}", marks=marks)


@pytest.mark.parametrize(
    ("private_broker", "pool", "lose"), list(map(with_marks, CASES)), indirect=["private_broker"]
)
def test_calls_in_every_state_run_as_often_as_they_should(
    private_broker, pool, lose, deploy, monkeypatch, gate
):
    with working(private_broker, deploy, monkeypatch, pool) as case:
        tasks = case.site.module
        prefetch = case.ask("stats")["prefetch_count"]
        # The rate limit holds back all but the first batch.
        case.wait("end", case.send(tasks.limited, 2))
        held_back, buffered = case.send(tasks.limited, 2), case.send(tasks.buffered, 3)
        waiting = held_back + buffered
        # A moment later than the loss, or one that never comes where that takes long.
        seconds = 3600 if lose in UNNOTICED else 10
        eta = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        later = case.send(tasks.quick, 1, eta=eta)
        case.wait("received", held_back + buffered + later)
        # The solo pool runs one batch at a time.
        early = [] if pool == "solo" else case.hold("early")
        late = case.hold("late")
        queued = []
        if pool in ("prefork", "threads"):
            # Both processes, or threads, are busy: two more batches wait for one.
            queued = case.send(tasks.running, 2)
            case.wait("received", queued)
        if pool != "solo":
            case.site.wait_until_active(
                case.worker, len(early + late), waiting=len(waiting + queued)
            )
        assert set(case.times("run", waiting + queued + later)) == {0}
        moment = time.time()
        with lose(case):
            # The batches that run end while the connection is away, or when it is another one.
            gate.open()
            case.wait("end", early + late)
        case.forget_connections()
        if lose is not frozen or "Connection to broker lost" in case.worker.text:
            case.restore_what_was_taken_before(moment)
            case.wait_until_connected(2)
        # A batch still fills by size. With it comes back what was in the old buffer.
        filling = case.send(tasks.buffered, 2)
        case.wait("end", buffered + filling)
        # The interval is kept.
        quick = case.send(tasks.quick, 3)
        case.wait("end", quick + queued)
        for task in tasks.limited.values():
            case.site.app.control.rate_limit(task.name, "1000/s", destination=[case.worker.node])
        more = case.send(tasks.limited, 2) + case.send(tasks.running, 2)
        case.wait("end", held_back + more)
        if lose not in UNNOTICED:
            case.wait("end", later)
        left = later if lose in UNNOTICED else []
        case.wait_until_at_rest()
        # There is room to fill a batch of those that have filled one, at most; nothing else is left
        # of those that ran, and of what waits for its ETA one message each.
        if HAS_OPTION:
            case.wait_for_room(prefetch + len(left), least=2 * 5, most=2 * (5 + 2 + 2))
    once = [*waiting, *filling, *quick, *more, *early]
    if lose in UNNOTICED:
        # Their acknowledgement is not heard.
        assert set(case.times("run", queued)) <= {1, 2}
        assert set(case.times("run", later)) == {0}
    else:
        once += queued + later
    assert set(case.times("run", once)) == {1}
    # At least once. With Redis, they may be acknowledged by way of another connection.
    assert set(case.times("run", late)) <= ({1, 2} if case.is_redis else {2})
    assert max(len(report["numbers"]) for report in case.site.reports.of("run")) == 5
    # With Redis, Celery does no more than to log an acknowledgement that the network swallows.
    unheard = late + queued if lose is frozen and case.is_redis else []
    assert len(left) <= case.site.messages_left() <= len(left + unheard)


@pytest.mark.parametrize(
    ("private_broker", "pool"),
    [
        pytest.param("rabbitmq", "prefork", marks=pytest.mark.rabbitmq),
        pytest.param("redis", "gevent", marks=[pytest.mark.redis, pytest.mark.gevent]),
        pytest.param("rabbitmq", "gevent", marks=[pytest.mark.rabbitmq, pytest.mark.gevent]),
    ],
    indirect=["private_broker"],
)
def test_late_batches_are_cancelled_and_run_again_if_the_option_says_so(
    private_broker, pool, deploy, monkeypatch, gate
):
    if pool == "gevent":
        module = pytest.importorskip("celery.concurrency.gevent")
        if "terminate_job" not in vars(module.TaskPool):
            pytest.skip("this Celery cannot end a greenlet")
    option = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    with working(private_broker, deploy, monkeypatch, pool, **option) as case:
        early, late = case.hold("early"), case.hold("late")
        case.site.wait_until_active(case.worker, 4)
        with closed(case):
            case.wait("retry", late)
            assert set(case.times("end", early + late)) == {0}
            gate.open()
        case.forget_connections()
        case.wait("end", early + late)
        case.wait_until_at_rest()
    # What was cancelled never came to its end; as for an ordinary task, it is no revocation.
    assert case.times("run", late) == [2, 2]
    assert case.times("end", late) == [1, 1]
    assert case.times("retry", late) == [1, 1]
    assert case.times("run", early) == case.times("end", early) == [1, 1]
    assert case.site.reports.of("revoked") == []
    assert case.site.messages_left() == 0
