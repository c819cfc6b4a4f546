"""In a database a batch's states are stored in one transaction, each row as Celery writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import states
from celery.backends import base
from celery.backends.database import DatabaseBackend
from celery.backends.database.session import ResultModelBase
from kombu.utils.uuid import uuid
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from kit.sites import CALLS, CONFIGS, Site


class DatabaseSite(Site):
    def __init__(self, app: Any, path: Any, **config: Any) -> None:
        super().__init__(app, f"db+sqlite:///{path}", **config)
        self.path = path
        # Celery 5.3 makes them in the first database of a process only.
        engine = create_engine(f"sqlite:///{path}")
        ResultModelBase.metadata.create_all(engine)
        engine.dispose()
        # Celery 5.7 looks whether they lack a column.
        self.backend.ResultSession().close()

    def rows(self) -> list[dict[str, Any]]:
        """All that is in the table of results, but for the numbers of the rows."""
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute("SELECT * FROM celery_taskmeta ORDER BY task_id")
            names = [column[0] for column in found.description]
            rows = [dict(zip(names, row, strict=True)) for row in found]
        for row in rows:
            del row["id"]
        return rows

    def clear(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM celery_taskmeta")


@pytest.fixture
def database(app: Any, tmp_path: Any) -> Callable[..., DatabaseSite]:
    return lambda **config: DatabaseSite(app, tmp_path / f"{uuid()}.db", **config)


@pytest.fixture
def commits() -> Iterator[list[str]]:
    """What ends the transactions of all databases."""
    seen: list[str] = []

    def committed(connection: Any) -> None:
        seen.append("commit")

    def rolled_back(connection: Any) -> None:
        seen.append("rollback")

    event.listen(Engine, "commit", committed)
    event.listen(Engine, "rollback", rolled_back)
    yield seen
    event.remove(Engine, "commit", committed)
    event.remove(Engine, "rollback", rolled_back)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("config", ["default", "extended", "pickle"])
def test_the_same_rows_as_celery_in_one_transaction(
    database: Any, commits: list[str], config: str, call: str
) -> None:
    """A batch is one transaction, and each row as that of an ordinary task."""
    here = database(**CONFIGS[config])
    messages = here.received("done", "fail", "other", "nothing", "fail", "done", **CALLS[call])
    if call == "ignored":
        here.task.store_errors_even_if_ignored = True
    commits.clear()
    reports = here.run(messages)
    assert commits == ["commit"]
    at_once = here.rows()
    here.clear()
    here.run_alone(messages, reports)
    assert here.rows() == at_once
    assert len(at_once) == (2 if call == "ignored" else 5)


def test_rows_that_are_there_already(database: Any, commits: list[str]) -> None:
    """They are treated as the installed Celery does, also when an id comes twice."""
    here = database()
    calls = ["fail", "done", "done", ("fail", {"task_id": "id-1"}), ("other", {"task_id": "id-0"})]
    messages = here.received(*calls)
    rows = []
    reports: Any = None
    for alone in (False, True):
        here.backend.mark_as_done("id-0", "before")
        here.backend.store_result("id-2", None, states.STARTED)
        commits.clear()
        if alone:
            here.run_alone(messages, reports)
        else:
            reports = here.run(messages)
            assert commits == ["commit"]
        rows.append(here.rows())
        here.clear()
        for row in rows[-1]:
            del row["date_done"]  # Of the database's own clock, where nothing else has changed.
    assert rows[0] == rows[1]


@pytest.mark.parametrize("why", ["encode", "database"])
def test_a_row_that_cannot_be_stored(
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    commits: list[str],
    why: str,
) -> None:
    """The transaction is undone, then the states are stored one by one: no other is lost."""
    here = database()
    update = DatabaseBackend._update_result
    left = [1]

    def update_or_fail(self: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        if task.task_id == "id-1" and why == "database" and left:
            left.pop()
            raise OperationalError("UPDATE", {}, Exception("locked"))
        return update(self, task, *args, **kwargs)

    monkeypatch.setattr(DatabaseBackend, "_update_result", update_or_fail)
    commits.clear()
    here.run(here.received("done", "function" if why == "encode" else "done", "done"))
    assert commits[0] == "rollback"
    rows = here.rows()
    assert [row["task_id"] for row in rows] == ["id-0", "id-1", "id-2"]
    failing = "FAILURE" if why == "encode" else "SUCCESS"
    assert [row["status"] for row in rows] == ["SUCCESS", failing, "SUCCESS"]
    if why == "database" and hasattr(base.Backend, "_ensure_retryable"):
        # Nothing was tried again in a transaction that is lost.
        assert [record.name for record in caplog.records] == ["celery_batches.backends.bulk"]
