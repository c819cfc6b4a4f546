"""A Redis whose replica takes its place while something is under way."""

import json
import os
from threading import Event, Thread

import brokers
import pytest
from faults.failover import ON_DISK, Succession, wait_until
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

pytestmark = pytest.mark.redis


@pytest.fixture
def server(tmp_path):
    try:
        server = brokers.start_redis(tmp_path / "redis", None, *ON_DISK)
    except brokers.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}, and CI has to run every test")
        pytest.skip(str(missing))
    yield server
    server.kill()


def test_a_replica_has_all_that_was_confirmed(server):
    """So what the ledger misses after a failover was not lost by Redis; and each is read once."""
    succession, confirmed, stopped = Succession(server), [], Event()

    def write():
        with Redis.from_url(server.url) as client:
            number = 0
            while not stopped.is_set():
                number += 1
                try:
                    client.rpush("numbers", number)
                except RedisConnectionError:
                    continue
                confirmed.append(b"%d" % number)

    thread = Thread(target=write, daemon=True)
    thread.start()
    try:
        for _ in range(3):
            more = len(confirmed) + 100
            wait_until(lambda more=more: len(confirmed) > more)
            succession.fail_over(succession.start_replica())
        more = len(confirmed) + 100
        wait_until(lambda: len(confirmed) > more)
    finally:
        stopped.set()
        thread.join()
    with Redis.from_url(server.url) as client:
        stored = client.lrange("numbers", 0, -1)
    assert set(confirmed) <= set(stored)
    read = [words[2] for words in succession.commands() if words[0].upper() == b"RPUSH"]
    assert read == stored


def stored(server):
    """The result of each call by its id, according to the Redis that is there."""
    with Redis.from_url(server.url) as client:
        metas = [json.loads(client.get(key)) for key in client.scan_iter("*celery-task-meta-*")]
    return {meta["task_id"]: meta["result"] for meta in metas}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize(("name", "calls"), [("batch", 3), ("ordinary", 1)])
def test_results_that_are_being_stored(redis_url, server, deploy, name, calls, pool):
    """They are stored by the replica: the worker tries again, as it does for any task."""
    site = deploy("failover_app", redis_url, server.url)
    succession = Succession(server)
    os.mkfifo(site.directory / "go")
    replica = succession.start_replica()

    def end_the_body(old):
        (site.directory / "go").write_text("")
        wait_until(lambda: old.info("clients")["blocked_clients"] > 0)

    with site.worker(pool, concurrency=1) as worker:
        results = [getattr(site.module, name).delay(number) for number in range(calls)]
        ids = [result.id for result in results]
        assert [report["ids"] for report in site.reports.expect("run")] == [ids]
        succession.fail_over(replica, end_the_body)
        wait_until(lambda: stored(server) == {each: number for number, each in enumerate(ids)})
    assert len(site.reports.of("run")) == 1
    assert site.messages_left() == 0
    assert all("Connection to Redis lost" in line for line in worker.problems), worker.problems
