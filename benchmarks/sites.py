"""A directory, a queue and workers for one measurement, and the end of all three."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environments import HERE, variables  # First: it makes `records` importable.
from kombu.utils.uuid import uuid
from publishing import Publisher
from records import BODY, WAIT
from redis_keys import delete_keys_of, keys_of
from tails import Tail

__all__ = ("Failed", "Site", "broker_url")

#: Seconds in which something has to happen.
PATIENCE = 60.0


class Failed(Exception):
    """A measurement came to nothing; the message says why."""


def broker_url(broker: str) -> str:
    """The URL that `scripts/services.py run` provides.

    Raises:
        Failed: If there is none.
    """
    variable = {"redis": "TEST_REDIS_URL", "rabbitmq": "TEST_RABBITMQ_URL"}[broker]
    if url := os.environ.get(variable):
        return url
    raise Failed(f"{variable} is not set: use `make bench`, or scripts/services.py run")


class Site:
    """Where workers run and write down what they do.

    Arguments:
        broker: `rabbitmq` or `redis`.
        results: Whether results are kept, in Redis.
        settings: For the app.
        config: Further configuration for Celery.
    """

    def __init__(
        self,
        broker: str,
        *,
        results: bool = False,
        settings: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.broker, self.url, self.queue = broker, broker_url(broker), f"bench-{uuid()}"
        prefix = {"global_keyprefix": f"{self.queue}:"}
        options = prefix if broker == "redis" else {}
        self.config: dict[str, Any] = {
            "broker_url": self.url,
            "broker_transport_options": options,
            "broker_connection_retry_on_startup": True,
            "task_default_queue": self.queue,
            **(config or {}),
        }
        if results:
            self.config["result_backend"] = broker_url("redis")
            self.config["result_backend_transport_options"] = prefix
        self.settings = {
            "queue": self.queue,
            "broker_url": self.url,
            "transport_options": options,
            **(settings or {}),
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        #: When each call of the body has ended, and its number of messages, as far as is known.
        self.bodies: list[tuple[float, int]] = []
        self._done = 0

    def __enter__(self) -> Site:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        shutil.copytree(HERE / "apps", self.directory, dirs_exist_ok=True)
        lines = [f"{key} = {value!r}\n" for key, value in self.config.items()]
        (self.directory / "celeryconfig.py").write_text("".join(lines))
        (self.directory / "settings.json").write_text(json.dumps(self.settings))
        self._tail = Tail(self.directory / "bodies", BODY)
        self.publisher = Publisher(self.url, self.queue, self.settings["transport_options"])
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        with self.publisher:
            self.publisher.delete()
        for url in {self.url, self.config.get("result_backend", "")}:
            if url.startswith("redis"):
                delete_keys_of(url, self.queue)
        shutil.rmtree(self.directory)

    def start(self, python: str, app: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker; `options` are for `celery worker`, and without any it is no Celery."""
        command = [python, "-m", app]
        if options:
            command = [python, "-m", "celery", "-A", app, "worker", "-n", f"{uuid()}@bench"]
            command += ["-l", "WARNING", "--without-gossip", "--without-mingle", *options]
        with (self.directory / "log").open("ab") as log:
            worker = subprocess.Popen(
                command,
                cwd=self.directory,
                env=variables(python),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def wait_for(self, happened: Callable[[], Any], what: str) -> None:
        """Wait until something is so.

        Raises:
            Failed: If it does not become so, or a worker ends.
        """
        deadline = time.monotonic() + PATIENCE
        while not happened():
            self.check()
            if time.monotonic() > deadline:
                raise Failed(f"{what} takes more than {PATIENCE:g} seconds")
            time.sleep(0.01)

    def wait_until_done(self, messages: int, *, limit: float) -> None:
        """Wait until the bodies have had so many messages.

        Raises:
            Failed: If nothing goes on any more, or it takes more than `limit` seconds.
        """
        started = progress = time.monotonic()
        before = 0
        while (done := self.done()) < messages:
            self.check()
            now = time.monotonic()
            if done > before:
                before, progress = done, now
            if now - progress > PATIENCE or now - started > limit:
                raise Failed(f"{done} of {messages} messages are run after {now - started:.0f}s")
            time.sleep(0.02)

    def done(self) -> int:
        """For how many messages the body has been called."""
        for ended, size in self._tail.new():
            self.bodies.append((ended, size))
            self._done += size
        return self._done

    def waits(self) -> list[float]:
        """How long each message has waited from being sent to its body, in seconds."""
        return [wait for (wait,) in Tail(self.directory / "waits", WAIT).new()]

    def notes(self, what: str) -> list[dict[str, Any]]:
        """What each worker has noted of its start (`ready`) and its first message (`first`)."""
        return [json.loads(path.read_text()) for path in self.directory.glob(f"{what}-*.json")]

    def results_kept(self) -> int:
        """How many results are in Redis."""
        return len(keys_of(broker_url("redis"), f"{self.queue}*celery-task-meta-"))

    def stop(self) -> None:
        """Stop all workers in good order."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.workers.clear()

    def log(self) -> str:
        """What the workers have said."""
        return (self.directory / "log").read_text(errors="replace")

    def check(self) -> None:
        if any(worker.poll() is not None for worker in self.workers):
            raise Failed(f"A worker has ended:\n{self.log()[-2000:]}")
