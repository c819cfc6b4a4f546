"""Flower itself, beside a worker: it shows every request of a batch as a task of its own.

Flower knows just what is in `celeryconfig.py`, and not the tasks, as where it runs on a host of its
own. `scripts/peers.py` installs it.
"""

import contextlib
import json
import os
import time
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from brokers import LOCALHOST, free_port
from harness import DEADLINE, Worker, python_of

pytestmark = pytest.mark.redis

DIRECTLY = build_opener(ProxyHandler({}))


class Flower:
    """A running Flower, by its HTTP API."""

    def __init__(self, url):
        self.url = url

    def ask(self, path, method="GET"):
        request = Request(f"{self.url}/api/{path}", method=method)
        with DIRECTLY.open(request, timeout=DEADLINE) as answer:
            return json.load(answer)

    def expect(self, wanted):
        """Wait until these tasks are shown in these states, and no others."""
        deadline = time.monotonic() + DEADLINE
        while (shown := {i: task["state"] for i, task in self.ask("tasks").items()}) != wanted:
            assert time.monotonic() < deadline, f"{shown} is not {wanted}"


@pytest.fixture(scope="module")
def python():
    """The Python that has Flower."""
    return python_of("flower")


@contextlib.contextmanager
def running_flower(site, python):
    port = free_port()
    command = [python, "-m", "celery", "--config", "celeryconfig", "flower"]
    command += [f"--address={LOCALHOST}", f"--port={port}"]
    env = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true", "PYTHONUNBUFFERED": "1"}
    env.pop("PYTHONPATH", None)
    process = Worker(command, site.directory, env, "flower")
    try:
        process.wait_for_log("Visit me at")
        yield Flower(f"http://{LOCALHOST}:{port}")
    except BaseException:
        process.kill()
        print(f"--- log of Flower\n{process.text}\n---")
        raise
    finally:
        process.kill()


@pytest.fixture
def site(redis_url, deploy):
    site = deploy("monitoring_app", redis_url, redis_url)
    os.mkfifo(site.directory / "go")
    return site


@contextlib.contextmanager
def watched(site, python):
    """A worker that Flower has heard of, and Flower."""
    with running_flower(site, python) as flower, site.worker("prefork", "-E") as worker:
        # It hears of the worker by an event, so it will hear of all that follow.
        deadline = time.monotonic() + DEADLINE
        while flower.ask("workers?status=1") != {worker.node: True}:
            assert time.monotonic() < deadline
        yield worker, flower


def test_flower_shows_each_request_on_its_way(site, python):
    with watched(site, python) as (worker, flower):
        gated = site.module.gated
        first, second = (gated.delay(i, word=f"n{i}").id for i in (1, 2))
        flower.expect({first: "RECEIVED", second: "RECEIVED"})
        third = gated.delay(-3).id
        flower.expect({first: "STARTED", second: "STARTED", third: "STARTED"})
        site.reports.expect("started")
        (site.directory / "go").write_text("now")
        flower.expect({first: "SUCCESS", second: "SUCCESS", third: "FAILURE"})

        info = {task_id: flower.ask(f"task/info/{task_id}") for task_id in (first, second, third)}
        assert {one["name"] for one in info.values()} == {gated.name}
        assert {one["worker"] for one in info.values()} == {worker.node}
        assert (info[second]["args"], info[second]["kwargs"]) == ("(2,)", "{'word': 'n2'}")
        assert [info[task_id]["result"] for task_id in (first, second)] == ["2", "4"]
        assert info[first]["runtime"] == info[second]["runtime"] > 0
        assert info[first]["received"] <= info[first]["started"] <= info[first]["succeeded"]
        assert info[third]["exception"] == "ValueError('-3 is negative')"
        assert "ValueError: -3 is negative" in info[third]["traceback"]


def test_flower_inspects_and_revokes_single_requests(site, python):
    with watched(site, python) as (worker, flower):
        gated = site.module.gated
        batch = {gated.delay(i).id: "STARTED" for i in range(3)}
        flower.expect(batch)
        site.reports.expect("started")
        kept, revoked = (gated.delay(i).id for i in (4, 5))
        flower.expect({**batch, kept: "RECEIVED", revoked: "RECEIVED"})
        shown = flower.ask(f"workers?refresh=1&workername={worker.node}")[worker.node]
        assert {info["id"] for info in shown["active"]} == set(batch)
        assert {info["id"] for info in shown["reserved"]} == {kept, revoked}
        assert shown["stats"]["total"] == {gated.name: 3}

        flower.ask(f"task/revoke/{revoked}", "POST")
        worker.wait_for_log(f"flagged as revoked: {revoked}")
        last = gated.delay(6).id  # It fills the batch.
        (site.directory / "go").write_text("now")
        site.reports.expect("started", 2)
        (site.directory / "go").write_text("now")
        ended = dict.fromkeys([*batch, kept, last], "SUCCESS")
        flower.expect({**ended, revoked: "REVOKED"})


def test_flower_shows_how_each_request_ended(site, python):
    with watched(site, python) as (_, flower):
        ways = {"marked": "SUCCESS", "unmarked": "SUCCESS", "retried": "SUCCESS"}
        ways |= {"marked failed": "FAILURE", "requeued": "SUCCESS"}
        calls = {site.module.together.delay(how).id: state for how, state in ways.items()}
        flower.expect(calls)
