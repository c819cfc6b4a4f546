"""A worker that loses things at points which a test names, and is kept running."""

import contextlib
import json
import os
import socket
import socketserver
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Lock, Thread

from celery import chain, chord
from faults.crash_cases import SIZE
from faults.proxy import Proxy
from harness import Deployment, Reports, Worker, options_for
from kombu import Connection
from kombu.utils.uuid import uuid
from redis import Redis

#: Seconds until a case is given up. Only one in which something waits for ever takes so long.
DEADLINE = 20.0
#: How often in a row nothing may move until a case is over.
STILL = 3
#: The same for one that does not come to its point.
NEVER = 40
#: How many calls it may take until the process of the pool has noticed that all is well.
HEALING = 4
#: How many connections to the result backend are refused when it is away.
REFUSALS = 2

_loading = Lock()
PAUSE = Event()


class CrashSite:
    """One worker, supervised: it is started again if it ends. It belongs to one thread.

    Arguments:
        config: How the worker is configured.
        urls: The URL of each kind of broker; that of Redis is for results too.
        directory: For the app and its database.
    """

    def __init__(self, config, urls, directory):
        self._redis = Redis.from_url(urls["redis"])
        self.reports = Reports()
        self._sockets = tempfile.TemporaryDirectory(prefix="crash-")
        self._broker = Proxy(urls[config.broker]).__enter__()
        self._backend = None
        self._deploy(config, urls, Path(directory))
        self.app = self._site.app
        self.is_redis = config.broker == "redis"
        self._network = socketserver.UnixStreamServer(self._path("network"), self._handler())
        Thread(target=self._network.serve_forever, daemon=True).start()
        self.worker = None
        self._connection = self.app.connection_for_write()
        self._queue = self.app.amqp.queues[self._site.queue](self._connection.default_channel)
        self._queue.declare()
        self._start()

    def _deploy(self, config, urls, directory):
        backend = {"rpc": "rpc://", "database": f"db+sqlite:///{directory}/results.db"}
        url = backend.get(config.backend, urls["redis"])
        options = options_for(urls[config.broker], url, f"crash-{uuid()}")
        options |= {
            "worker_deduplicate_successful_tasks": config.dedup,
            "task_ignore_result": config.backend == "ignored",
            "batches_shortcuts": config.bulk,
            "worker_lost_wait": 0.1,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_enable_prefetch_count_reduction": False,
            "worker_prefetch_multiplier": 16,
            "result_chord_retry_interval": 0.3,
            "broker_connection_max_retries": None,
        }
        if config.broker == "rabbitmq":
            # Without it, RabbitMQ may drop what was published just before a connection is cut.
            options["broker_transport_options"] = {"confirm_publish": True}
        if url.startswith("redis"):
            self._backend = Proxy(url).__enter__()
        with _loading:  # It changes what is global.
            self._site = Deployment("crash_app", directory, options, self.reports)
        self._env = {
            **os.environ,
            "C_FORCE_ROOT": "1",
            "CELERY_BROKER_URL": self._broker.url,
            "CELERY_RESULT_BACKEND": self._backend.url if self._backend else url,
            "PYTHONUNBUFFERED": "1",
            "REPORTS": self.reports.path,
            "CENSUS": self._path("census"),
            "NETWORK": self._path("network"),
        }

    def _path(self, name):
        return os.path.join(self._sockets.name, name)

    def _handler(self):
        broker, backend, arrive = self._broker, self._backend, self._arrive

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                order = self.request.recv(100)
                if order == b"backend away":
                    backend.go_away(REFUSALS)
                else:
                    arrive()
                if order == b"broker cut":
                    broker.cut(after_all=True)
                self.request.sendall(b"done")

        return Handler

    def _arrive(self):
        """Wait until the worker has what Redis has for it, unless it does not take it."""
        deadline = time.monotonic() + 1
        still = 0
        while self.is_redis and still < STILL and time.monotonic() < deadline:
            still = 0 if self._ready() else still + 1
            PAUSE.wait(0.02)

    def _start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path("census"))
        node = f"{uuid()[:8]}@test"
        command = [sys.executable, "-m", "celery", "-A", "crash_app", "worker", "-n", node]
        command += ["-c", "1", "-l", "INFO", "-E", "--without-gossip", "--without-mingle"]
        self.worker = Worker(command, self._site.directory, self._env, node)
        self.worker.wait_for_log(r" ready\.")

    def supervise(self):
        """Start the worker again if it has ended."""
        if self.worker.process.poll() is not None:
            self.worker.kill()
            self._start()

    def replace(self):
        """Have another worker, which has done what was left to do."""
        self.worker.kill()
        self.settle(lambda: True)

    def order(self, case, number):
        """Have the worker lose something when it comes to the point of this case."""
        order = {"case": number, "point": case.point, "nth": case.nth, "way": case.way}
        order["acked"] = 0 if case.acks != "early" else SIZE if case.kind == "batch" else case.nth
        (self._site.directory / "acked").write_bytes(b"")
        path = self._site.directory / "order.json"
        path.with_suffix(".new").write_text(json.dumps(order))
        path.with_suffix(".new").rename(path)

    def take_back(self):
        """Take the order back, if it was not carried out; return whether so."""
        try:
            (self._site.directory / "order.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def send(self, case, number):
        """Make the calls of a case; return their results, and that of their chord."""
        tasks, task = self.app.tasks, self.app.tasks[f"{case.kind}_{case.acks}"]
        names = [f"{number}.{call}" for call in range(case.calls)]
        how = case.mode.partition(" ")[0]
        how = how if how in ("fail", "retry") else "done"
        if case.mode == "chord":
            header = [task.s(name, how) for name in names]
            result = chord(header)(tasks["callback"].si(str(number)))
            return dict(zip(names, result.parent.results, strict=True)), result
        results = {}
        for name in names:
            sig = task.s(name, how)
            if case.mode in ("link", "retry"):
                sig.link(tasks["link"].si(name))
            if case.mode == "fail here":
                sig.link_error(tasks["errback_here"].s())
            elif case.mode not in ("plain", "fail alone"):
                sig.link_error(tasks["errback"].si(name))
            if case.mode == "chain":
                results[name] = chain(sig, tasks["next"].si(name)).apply_async().parent
            else:
                results[name] = sig.apply_async()
        return results, None

    def settle(self, is_done):
        """Wait until nothing moves any more, or give up; return whether nothing does."""
        deadline = time.monotonic() + DEADLINE
        still, unacked, before = 0, 0, None
        while still < (STILL if is_done() and not unacked else NEVER):
            self.supervise()
            unacked = self._unacked()
            now = (self._census(), self._ready(), unacked, len(self.reports.items))
            still = still + 1 if now == before and not any(now[:2]) else 0
            if unacked and still == STILL:
                self._deliver_again()
            before = now
            if time.monotonic() > deadline:
                return False
            PAUSE.wait(0.05)
        return True

    def heal(self):
        """Have the result backend back, and the process of the pool connected to it."""
        self._backend.come_back()
        for _ in range(HEALING):
            result = self.app.tasks["plain_early"].delay("healing", "done")
            if self.settle(lambda: True) and result.state == "SUCCESS":
                return
        raise AssertionError(self.worker.text)

    def _ready(self):
        if self.is_redis:
            return self._redis.llen(f"{self._site.queue}:{self._site.queue}")
        return self._queue.queue_declare(passive=True).message_count

    def _unacked(self):
        """Return how many messages Redis has as delivered."""
        return self._redis.hlen(f"{self._site.queue}:unacked") if self.is_redis else 0

    def _deliver_again(self):
        """Have Redis deliver again what nobody has, as when the visibility time-out is over."""
        options = {**self.app.conf.broker_transport_options, "visibility_timeout": 0}
        url = self._site.config["broker_url"]
        with Connection(url, transport_options=options) as connection:
            connection.default_channel.qos.restore_visible(num=None, interval=1)

    def _census(self):
        """Return how many requests the worker has; -1 if it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as census:
                census.settimeout(1)
                census.connect(self._path("census"))
                return int(census.recv(10) or 0)
        except OSError:
            return -1

    def close(self):
        self.worker.kill()
        self._network.shutdown()
        self._network.server_close()
        self._connection.release()
        self._broker.__exit__(None, None, None)
        if self._backend:
            self._backend.__exit__(None, None, None)
        self._redis.close()
        self._site.close()
        self.reports.close()
        self._sockets.cleanup()
