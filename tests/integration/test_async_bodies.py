"""``async def`` bodies on real workers: one event loop for each process or thread."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import defaultdict
from threading import Thread

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import SoftTimeLimitExceeded
from harness import DEADLINE

from celery_batches import Batches

POOLS = ["prefork", "threads", "solo"]

#: The requests of a batch.
SIZE = 100


class Server:
    """An HTTP server that answers no request of a batch before all of them have arrived."""

    def __init__(self):
        #: The connections of each client, by the name that it gives itself.
        self.connections = defaultdict(set)
        #: The batches, with the number of their requests.
        self.batches = defaultdict(int)
        self._complete = defaultdict(asyncio.Event)

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                lines = [line.partition(": ") for line in head.splitlines()[1:]]
                headers = {name: value for name, _, value in lines}
                self.connections[headers["x-me"]].add(id(writer))
                batch = headers["x-batch"]
                self.batches[batch] += 1
                if self.batches[batch] == SIZE:
                    self._complete[batch].set()
                await asyncio.wait_for(self._complete[batch].wait(), DEADLINE)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1000")
        self._closed.append(writer)  # So that no other connection gets its id.
        writer.close()

    @contextlib.contextmanager
    def running(self):
        """Run it in a thread of its own; yield its URL."""
        self._closed = []
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0))
        thread = Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(DEADLINE)
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    with server.running() as url:
        monkeypatch.setenv("SERVER", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server


@pytest.mark.redis
@pytest.mark.parametrize("pool", POOLS)
def test_a_hundred_http_calls_at_once_on_connections_that_are_kept(pool, redis_url, deploy, server):
    """All requests of a batch are under way at once, and the next batch uses their connections."""
    site = deploy("async_app", redis_url, redis_url)
    with site.worker(pool, concurrency=2):
        for first in (0, SIZE, 2 * SIZE):
            numbers = range(first, first + SIZE)
            calls = [site.module.fetch.delay(number) for number in numbers]
            results = [call.get(timeout=DEADLINE) for call in calls]
            assert results == [1000 + number for number in numbers]
    assert sorted(server.batches.values()) == [SIZE] * 3
    opened = sorted(report["me"] for report in site.reports.of("opened"))
    # Of three batches, two at least share a process or thread.
    assert 1 <= len(opened) <= (1 if pool == "solo" else 2)
    assert {me: len(of_me) for me, of_me in server.connections.items()} == dict.fromkeys(
        opened, SIZE
    )
    # The worker has ended: so have the clients, on the loops that they were opened on.
    assert len(site.reports.expect("closed", len(opened))) == len(opened)


def pair(task):
    return [task.delay(i) for i in range(2)]


@pytest.mark.redis
def test_the_soft_time_limit_interrupts_an_async_body(redis_url, deploy):
    """While it waits, and while it blocks its loop. The process and its loop run the next batch."""
    site = deploy("async_app", redis_url, redis_url)
    with site.worker(concurrency=1) as worker:
        for _ in range(2):
            first, second = pair(site.module.hang)
            assert first.get(timeout=DEADLINE) == "first"
            with pytest.raises(SoftTimeLimitExceeded):
                second.get(timeout=DEADLINE)
        with pytest.raises(SoftTimeLimitExceeded):
            pair(site.module.block)[0].get(timeout=DEADLINE)
        site.wait_until_active(worker, 0)
    hangs, told = site.reports.of("hang"), site.reports.of("told")
    assert [report["id"] for report in hangs] == [report["id"] for report in told]
    assert len({report["id"] for report in hangs}) == 2
    assert len({(report["pid"], report["loop"]) for report in [*hangs, *told]}) == 1
    assert len(worker.problems) == 3
    assert site.messages_left() == 0


@pytest.mark.redis
@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_shutdown_waits_for_an_async_body(pool, redis_url, deploy, server):
    """It finishes, its requests get their results, and then its loop is closed."""
    site = deploy("async_app", redis_url, redis_url)
    os.mkfifo(site.directory / "go")
    with site.worker(pool, concurrency=1) as worker:
        calls = pair(site.module.gated)
        site.reports.expect("gated")
        if pool != "solo":  # Which answers nobody while a body runs.
            site.wait_until_active(worker, 2)
        worker.process.terminate()
        worker.wait_for_log("Warm shutdown")
        assert site.reports.of("closed") == []
        (site.directory / "go").write_text("now")
        assert [call.get(timeout=DEADLINE) for call in calls] == ["finished"] * 2
        assert worker.process.wait(DEADLINE) == 0
    assert len(site.reports.expect("closed")) == 1
    assert site.messages_left() == 0


@pytest.mark.redis
@pytest.mark.parametrize(
    "pool",
    [
        pytest.param("gevent", marks=pytest.mark.gevent),
        pytest.param("eventlet", marks=pytest.mark.eventlet),
    ],
)
def test_a_worker_with_greenlets_does_not_start(pool, redis_url, deploy):
    """It ends with an error that says what to do."""
    site = deploy("async_app", redis_url, redis_url)
    command = [sys.executable, "-m", "celery", "-A", "async_app", "worker", "-P", pool]
    env = {**os.environ, "C_FORCE_ROOT": "1", "REPORTS": site.reports.path}
    worker = subprocess.run(
        [*command, "--without-gossip", "--without-mingle"],
        cwd=site.directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    log = worker.stdout + worker.stderr
    assert worker.returncode == 1, log
    assert "ready." not in log
    assert f"its body is async, and the pool '{pool}' cannot run it" in log
    assert "--pool=threads" in log


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_worker_in_the_process_of_the_tests(pool):
    """As ``celery.contrib.testing`` runs it, in a thread. A second one is no different."""
    app = Celery("memory", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(base=Batches, flush_every=4, flush_interval=0.5, shared=False, return_results=True)
    async def double(requests):
        await asyncio.sleep(0)
        return [request.args[0] * 2 for request in requests]

    for _ in range(2):
        with start_worker(app, pool=pool, concurrency=2, perform_ping_check=False):
            results = [double.delay(i) for i in range(10)]
            expected = [i * 2 for i in range(10)]
            assert [result.get(timeout=DEADLINE) for result in results] == expected
