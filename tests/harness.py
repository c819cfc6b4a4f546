"""Real workers for the tests: each is a `celery worker` process with an app from a directory.

What a worker does is learned from two streams, and waited for with a deadline: its log, and the
reports that the test apps send to a socket (`apps/reporting.py`). Nothing here sleeps.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread
from types import ModuleType
from typing import Any

import peers
import pytest
from celery import _state, signals
from celery.utils.dispatch import Signal
from kombu import pools
from kombu.utils.collections import eqhash
from kombu.utils.uuid import uuid
from redis import Redis

#: Seconds until a test gives up waiting: long, since only a failing test waits for it.
DEADLINE = 40.0

BATCH_LINE = re.compile(
    r"Batch (?P<name>\S+)\[(?P<id>\S+)\] of (?P<size>\d+) requests, "
    r"flushed by (?P<trigger>\w+), (?P<ending>.*) in (?P<runtime>[\d.e-]+)s: (?P<what>.*)"
)
PROBLEM_LINE = re.compile(r": (ERROR|CRITICAL)/")


SIGNALS = [value for value in vars(signals).values() if isinstance(value, Signal)]


class Stream:
    """Things that arrive on another thread, kept in order of arrival."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._changed = Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    @property
    def items(self) -> list[Any]:
        with self._changed:
            return list(self._items)

    def wait(
        self,
        count: Callable[[list[Any]], int],
        wanted: int,
        *,
        what: str,
        alive: Callable[[], bool] = lambda: True,
        timeout: float = DEADLINE,
    ) -> list[Any]:
        """Return all items, as soon as `count` of them is `wanted` or more."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while (have := count(self._items)) < wanted:
                left = deadline - time.monotonic()
                if left <= 0 or not alive():
                    reason = f"within {timeout}s" if left <= 0 else "and the worker has ended"
                    raise AssertionError(f"{have} of {wanted} {what} {reason}: {self._items}")
                self._changed.wait(min(left, 1))
            return list(self._items)


class Reports(Stream):
    """What the bodies and signal handlers of test apps say; each report is a dict."""

    def __init__(self) -> None:
        super().__init__()
        # Not in tmp_path: the path of a socket may have about 100 characters only.
        self._directory = tempfile.mkdtemp(prefix="reports-")
        self.path = os.path.join(self._directory, "socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := self._socket.recv(1 << 20):
            self.put(json.loads(data))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.path)
        self._thread.join()
        self._socket.close()
        shutil.rmtree(self._directory)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [report for report in self.items if report["event"] == event]

    def expect(self, event: str, wanted: int = 1, *, each: Any = None) -> list[dict[str, Any]]:
        """Wait for reports of this event; `each` says for how many one counts."""
        weigh = each or (lambda report: 1)

        def count(items: list[Any]) -> int:
            return sum(weigh(item) for item in items if item["event"] == event)

        self.wait(count, wanted, what=f"reports of {event!r}")
        return self.of(event)


class Worker:
    """A running `celery worker` process."""

    def __init__(self, command: list[str], directory: Path, env: dict[str, str], node: str) -> None:
        self.node = node
        self.log = Stream()
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.log.put(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.log.items)

    @property
    def batches(self) -> list[dict[str, str]]:
        """The batches in the log, in order."""
        return [found.groupdict() for line in self.log.items if (found := BATCH_LINE.search(line))]

    @property
    def problems(self) -> list[str]:
        """The lines of the log that open an error."""
        return [line for line in self.log.items if PROBLEM_LINE.search(line)]

    def wait_for_log(self, pattern: str, wanted: int = 1) -> None:
        expression = re.compile(pattern)

        def count(lines: list[Any]) -> int:
            return sum(1 for line in lines if expression.search(line))

        what = f"lines like {pattern!r}"
        self.log.wait(count, wanted, what=what, alive=lambda: self.process.poll() is None)

    def wait_for_batches(self, requests: int) -> list[dict[str, str]]:
        """Wait until batches with that many requests together are in the log."""

        def count(lines: list[Any]) -> int:
            return sum(int(m["size"]) for line in lines if (m := BATCH_LINE.search(line)))

        self.log.wait(count, requests, what="requests in logged batches")
        return self.batches

    def stop(self) -> int:
        """Warm shutdown, as an operator does it; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()


@dataclass
class Deployment:
    """An app from `apps/` in a directory of its own: for workers, and as `module` for the test."""

    name: str
    directory: Path
    config: dict[str, Any]
    reports: Reports
    module: ModuleType = field(init=False)

    def __post_init__(self) -> None:
        apps = Path(__file__).parent / "integration" / "apps"
        shutil.copytree(apps, self.directory, dirs_exist_ok=True)
        self._name_connections()
        lines = [f"{key} = {value!r}\n" for key, value in self.config.items()]
        (self.directory / "celeryconfig.py").write_text("".join(lines))
        self.module = self._load()

    @property
    def app(self) -> Any:
        return self.module.app

    @property
    def queue(self) -> str:
        return str(self.config["task_default_queue"])

    def _name_connections(self) -> None:
        """Give the app connections of its own, which RabbitMQ's log names.

        Kombu pools connections by URL and options, for all apps of a process. With a pool that
        is shared, a test gets what an earlier one has left there, broken or not.
        """
        if self.config["broker_url"].startswith("amqp"):
            options = {"client_properties": {"connection_name": self.queue}}
            options.update(self.config.get("broker_transport_options", {}))
            self.config["broker_transport_options"] = options

    def _load(self) -> ModuleType:
        """Import the app anew, and have it read its configuration while it can be found."""
        path = self.directory / f"{self.name}.py"
        spec = importlib.util.spec_from_file_location(self.name, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        importlib.invalidate_caches()
        # Celery gives the tasks of every app to all apps that are made later, and signals are for
        # the whole process: not from here.
        shared = set(_state._on_app_finalizers)
        receivers = {signal: list(signal.receivers) for signal in SIGNALS}
        os.environ["REPORTS"] = self.reports.path
        sys.path.insert(0, str(self.directory))
        try:
            spec.loader.exec_module(module)
            module.app.finalize()
            assert module.app.conf.task_default_queue == self.queue
        finally:
            _state._on_app_finalizers.intersection_update(shared)
            for signal, before in receivers.items():
                signal.receivers[:] = before
            sys.path.remove(str(self.directory))
            del os.environ["REPORTS"]
            for name in ("celeryconfig", "reporting"):
                sys.modules.pop(name, None)
        return module

    @contextlib.contextmanager
    def worker(
        self,
        pool: str = "prefork",
        *options: str,
        concurrency: int = 2,
        loglevel: str = "INFO",
        python: str = sys.executable,
        exits: int | None = 0,
    ) -> Iterator[Worker]:
        """Run a worker that is ready, stop it in good order, and show its log if anything fails.

        `exits` is the code that it is to end with, or ``None`` for any.
        """
        node = f"{uuid()[:8]}@test"
        command = [python, "-m", "celery", "-A", self.name, "worker", "-P", pool, "-n", node]
        command += ["-c", str(concurrency), "-l", loglevel, "--without-gossip", "--without-mingle"]
        env = {
            **os.environ,
            "C_FORCE_ROOT": "1",  # Containers run tests as root; some of the tests use pickle.
            "PYTHONUNBUFFERED": "1",
            "REPORTS": self.reports.path,
        }
        if python != sys.executable:
            env.pop("PYTHONPATH", None)
        worker = Worker([*command, *options], self.directory, env, node)
        try:
            worker.wait_for_log(rf"{re.escape(node)} ready\.")
            yield worker
            assert worker.stop() == exits or exits is None
            assert "Traceback" not in worker.text or worker.problems
        except BaseException:
            worker.kill()
            print(f"--- log of the worker in {self.directory}\n{worker.text}\n---")
            raise
        finally:
            worker.kill()

    def messages_left(self) -> int:
        """How many messages are in the queue; those of a worker that has ended are back in it."""
        broker = self.config["broker_url"]
        if broker.startswith("redis"):  # Whose queues cannot be declared passively with a prefix.
            with Redis.from_url(broker) as client:
                queues = client.scan_iter(match=f"{self.queue}:{self.queue}*", count=1000)
                waiting = sum(client.llen(key) for key in queues)
                return int(waiting + client.hlen(f"{self.queue}:unacked"))
        with self.app.connection_for_read() as connection:
            declared = connection.default_channel.queue_declare(self.queue, passive=True)
            return int(declared.message_count)

    def wait_until_active(self, worker: Worker, count: int, *, waiting: int | None = 0) -> int:
        """Wait for the worker to know that so many requests run, and so many wait; return those.

        To know that none runs takes longer than to run them. A prefork worker that is stopped in
        between hangs for half a minute, and does not acknowledge what has run: Celery's
        `AsynPool.flush` discards each job that the main process does not know to be accepted.
        `waiting` is ``None`` for any number.
        """
        # With Redis, what is asked before the worker listens is lost.
        inspect = self.app.control.inspect(destination=[worker.node], timeout=2)
        deadline = time.monotonic() + DEADLINE
        while True:
            # In this order, or one that is on its way from here to there could be in neither.
            replies = inspect.reserved(), inspect.active()
            if all(replies):
                waits, runs = (len(reply[worker.node]) for reply in replies)
                if runs == count and waiting in (waits, None):
                    return waits
            wanted = f"{count} requests run and {'some' if waiting is None else waiting} wait"
            assert time.monotonic() < deadline, f"not so: {wanted}"

    def wait_for_messages(self, wanted: int) -> None:
        """Wait until that many messages are in the queue, and no worker has them."""
        deadline = time.monotonic() + DEADLINE
        while (ready := self.messages_ready()) != wanted:
            assert time.monotonic() < deadline, f"{ready} messages are ready, and not {wanted}"

    def messages_ready(self) -> int:
        """How many messages are in the queue, and no worker has them."""
        broker = self.config["broker_url"]
        if not broker.startswith("redis"):
            return self.messages_left()
        with Redis.from_url(broker) as client:
            queues = client.scan_iter(match=f"{self.queue}:{self.queue}*", count=1000)
            return sum(int(client.llen(key)) for key in queues)

    def publish(self, body: Any, headers: dict[str, Any], **options: Any) -> None:
        """Send any message at all."""
        with self.app.producer_pool.acquire(block=True) as producer:
            queue = self.app.amqp.queues[self.queue]
            producer.publish(
                body,
                headers=headers,
                routing_key=self.queue,
                exchange=queue.exchange,
                declare=[queue],
                **options,
            )

    def close(self) -> None:
        """Delete the queue and every key, and close the connections."""
        app, broker = self.app, self.config["broker_url"]
        with contextlib.suppress(AttributeError):
            app.backend.result_consumer.stop()
        if broker.startswith("amqp"):
            with app.connection_for_write() as connection:
                connection.default_channel.queue_delete(self.queue)
                connection.default_channel.exchange_delete(self.queue)
        self._close_connections()
        app.close()
        for url in {broker, self.config.get("result_backend", "")}:
            if url.startswith("redis"):
                self._delete_keys(url)
        if hasattr(app.backend, "client"):
            app.backend.client.connection_pool.disconnect()

    def _close_connections(self) -> None:
        connection = self.app.connection_for_write()
        pools.connections[connection].force_close_all()
        del pools.connections[connection]
        if eqhash(connection) in pools.producers:
            del pools.producers[connection]

    def _delete_keys(self, url: str) -> None:
        with Redis.from_url(url) as client:
            # Both the broker and the backend prefix their keys; some Celery releases do it twice.
            keys = list(client.scan_iter(match=f"*{self.queue}*", count=1000))
            if keys:
                client.delete(*keys)


@contextlib.contextmanager
def one_worker(
    name: str, directory: Path, options: dict[str, Any], pool: str
) -> Iterator[tuple[Deployment, Worker]]:
    """An app with one worker, which has to leave no message behind: for the tests of a module."""
    reports = Reports()
    site = Deployment(name, directory, options, reports)
    try:
        with site.worker(pool) as worker:
            yield site, worker
            site.wait_until_active(worker, 0)
        assert site.messages_left() == 0
    finally:
        site.close()
        reports.close()


def python_of(peer: str) -> str:
    """The Python that has a program which `scripts/peers.py` installs, or the test is skipped."""
    found = peers.find(peer)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"{peer} is not installed, and CI has to run every test: scripts/peers.py")
    if found is None:
        pytest.skip(f"{peer} is not installed: run scripts/peers.py")
    return str(found)


def options_for(broker: str, backend: str | None, queue: str) -> dict[str, Any]:
    """The configuration of an app whose traces can be found, and removed, by the name `queue`."""
    config: dict[str, Any] = {
        "broker_url": broker,
        "broker_connection_retry_on_startup": True,
        "task_default_queue": queue,
        "result_expires": 120,
        "worker_hijack_root_logger": True,
        "worker_redirect_stdouts": False,
    }
    if broker.startswith("redis"):
        config["broker_transport_options"] = {"global_keyprefix": f"{queue}:"}
    if backend:
        config["result_backend"] = backend
    if backend and backend.startswith("redis"):
        config["result_backend_transport_options"] = {"global_keyprefix": f"{queue}:"}
    return config
