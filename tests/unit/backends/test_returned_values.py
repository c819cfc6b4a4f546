"""What a body may return for a request: whatever an ordinary task may, on each kind of backend."""

from __future__ import annotations

import warnings
from collections import namedtuple
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery.app.trace import build_tracer
from celery.backends.database.models import ResultModelBase
from celery.result import AsyncResult
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from celery_batches.pool.trace import trace_batch
from celery_batches.testing import make_request
from kit.tasks import make_task

Pair = namedtuple("Pair", "a b")

LOOP: list[Any] = []
LOOP.append(LOOP)

TAKEN: dict[str, Any] = {
    "number": 1,
    "nothing": None,
    "not a number": float("nan"),
    "half a surrogate pair": "\ud800",
    "bytes": b"x\xff",
    "a decimal": Decimal("1.5"),
    "a date": datetime(2030, 1, 2),
    "a uuid": UUID(int=5),
    "a named tuple": Pair(1, 2),
    "a result": AsyncResult("other"),
    "a number as key": {1: 2},
    "a nul": "a\0b",
    "much": "x" * 100_000,
}
REFUSED: dict[str, Any] = {
    "a set": {1},
    "itself": LOOP,
    "a lock": Lock(),
    "a class": KeyError,
    "an error in a list": [KeyError("x")],
    "a tuple as key": {(1, 2): 3},
    "a generator": (number for number in ()),
}
VALUES = {**TAKEN, **REFUSED}


@pytest.fixture(params=["memory", "database", pytest.param("redis", marks=pytest.mark.redis)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    if request.param == "memory":
        return "cache+memory://"
    # Celery before 5.4 makes the tables of the first database of a process only.
    url = f"sqlite:///{tmp_path}/db"
    engine = create_engine(url, poolclass=NullPool)
    ResultModelBase.metadata.create_all(engine)
    return f"db+{url}"


def test_each_value_is_stored_or_refused_as_that_of_an_ordinary_task(
    app: Any, backend: str
) -> None:
    """All of them in one batch: what is refused fails its request alone."""
    app.conf.update(result_backend=backend, result_expires=60)

    def return_all(requests: Any) -> Any:
        return [VALUES[request.args[0]] for request in requests]

    @app.task(name="unit.ordinary")
    def ordinary(name: str) -> Any:
        return VALUES[name]

    task = make_task(app, return_all, return_results=True)
    run = uuid4().hex
    calls = [make_request([name], id=f"{run}-{name}-b", is_eager=False) for name in VALUES]
    trace_batch(task.name, "batch", calls, "size", "w@h")
    tracer = build_tracer(ordinary.name, ordinary, app.loader, "w@h", app=app)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # An exception outside of the body.
        for name in VALUES:
            tracer(f"{run}-{name}-o", (name,), {}, {"id": f"{run}-{name}-o", "task": ordinary.name})

    def stored(name: str, kind: str) -> tuple[str, str]:
        meta = app.backend.get_task_meta(f"{run}-{name}-{kind}")
        return meta["status"], repr(meta["result"])

    ordinary_ends = {name: stored(name, "o") for name in VALUES}
    # With Celery 5.3, the main process stores what the tracer could not.
    known = [name for name, (state, _) in ordinary_ends.items() if state != "PENDING"]
    assert set(known) >= set(TAKEN)
    assert {name: stored(name, "b") for name in known} == {
        name: ordinary_ends[name] for name in known
    }
    failed = {name for name in VALUES if stored(name, "b")[0] == "FAILURE"}
    # Some releases of Celery and kombu take more than others.
    assert {"a lock", "a generator"} <= failed <= set(REFUSED)
    for name in VALUES:
        app.AsyncResult(f"{run}-{name}-b").forget()
        app.AsyncResult(f"{run}-{name}-o").forget()
