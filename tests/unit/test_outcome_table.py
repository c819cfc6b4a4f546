"""The table of outcomes, cell by cell: the state of each request, and what became of its message.

`tests/integration/test_outcome_table.py` does the same with real workers.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import signals

from celery_batches.worker.job import BatchJob
from kit.messages import protocol_2
from kit.pool import Pool, Starts
from kit.requests import worker_request
from kit.tasks import make_task

APPS = str(Path(__file__).parents[1] / "integration" / "apps")
sys.path.insert(0, APPS)
table = importlib.import_module("outcome_table")
bodies = importlib.import_module("outcome_bodies")
sys.path.remove(APPS)

PARKED = "parked"


@pytest.fixture
def sent() -> Iterator[list[str]]:
    """The ids of the calls that were sent again."""
    ids: list[str] = []

    def on_publish(headers: Any, routing_key: str, **_: Any) -> None:
        assert routing_key == PARKED
        ids.append(headers["id"])

    signals.before_task_publish.connect(on_publish)
    yield ids
    signals.before_task_publish.disconnect(on_publish)


def run(app: Any, way: str, column: str, acks: str, *, pickles: bool) -> list[Any]:
    """Run a batch through a pool, and return the messages."""
    name = f"unit.{way}"
    options = table.task_options(column, acks, PARKED)
    task = make_task(app, bodies.body_for(way, PARKED), name=name, bind=True, **options)
    messages = [
        protocol_2(app, f"{way}-{number}", name, *call, ignore_result=task.ignore_result)
        for number, call in enumerate(bodies.CALLS)
    ]
    requests = [worker_request(app, task, message) for message in messages]
    pool = Pool(starts=Starts.AT_ONCE, pickles=pickles)
    BatchJob(task, requests, trigger="size", hostname="w@h").execute_using_pool(pool)
    pool.run()
    return messages


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Most of these batches fail. To format all those tracebacks takes longer than the rest."""
    caplog.set_level(logging.CRITICAL, logger="celery_batches")


#: For each way to acknowledge, and whether the pool has processes.
MODES = [*((acks, True) for acks in table.ACKS), ("late", False)]


@pytest.mark.parametrize(("acks", "pickles"), MODES)
@pytest.mark.parametrize("column", table.COLUMNS)
def test_a_column(app: Any, sent: list[str], column: str, acks: str, pickles: bool) -> None:
    """What becomes of each request, whatever the body does."""
    found = {}
    for way in table.WAYS:
        messages = run(app, way, column, acks, pickles=pickles)
        metas = [app.backend.get_task_meta(f"{way}-{n}") for n in range(table.SIZE)]
        told = [[what for what, _ in message.channel.said] for message in messages]
        again = [f"{way}-{n}" in sent for n in range(table.SIZE)]
        found[way] = table.letters(way, column, metas, again), told
    expected = {
        way: (table.cell(way, column), [[fate] for fate in table.fates(way, column, acks)])
        for way in table.WAYS
    }
    assert {way: each for way, each in found.items() if each != expected[way]} == {}


def test_the_table_has_every_letter() -> None:
    """Each way to end is in the table, and no other."""
    used = {letter for row in table.WAYS.values() for cell in row.values() for letter in cell}
    assert used == set(table.LETTERS)
    assert {len(cell) for row in table.WAYS.values() for cell in row.values()} == {table.SIZE}
