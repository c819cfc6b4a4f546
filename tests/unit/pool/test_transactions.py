"""A body that marks its requests inside of a database transaction, which is rolled back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kit.tracing import World, mark_done

INSERT = "INSERT INTO orders VALUES (?)"


@pytest.fixture
def connect(tmp_path: Path) -> Callable[[], sqlite3.Connection]:
    """A function that connects to a database which refuses an order that it has."""
    database = tmp_path / "orders.sqlite"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)")
        connection.execute(INSERT, ("id-2",))
    return lambda: sqlite3.connect(database)


def rows(connect: Any) -> list[str]:
    with closing(connect()) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM orders ORDER BY id")]


def insert(connection: sqlite3.Connection, request: Any) -> None:
    connection.execute(INSERT, (request.id,))


@pytest.mark.parametrize("way", ["method", "idiom"])
def test_a_mark_inside_stays(world: World, connect: Any, way: str) -> None:
    """As documented: the callers have a result, although their rows are gone."""

    def body(requests: Any) -> None:
        with closing(connect()) as connection, connection:
            for request in requests:
                insert(connection, request)
                mark_done(world, way, request, "saved")

    world.run(body)
    assert rows(connect) == ["id-2"]
    assert world.states == ["SUCCESS", "SUCCESS", "FAILURE"]


@pytest.mark.parametrize("way", ["method", "idiom"])
def test_a_mark_after_the_commit_is_true(world: World, connect: Any, way: str) -> None:
    """If the transaction is rolled back, every request fails."""

    def body(requests: Any) -> None:
        with closing(connect()) as connection, connection:
            for request in requests:
                insert(connection, request)
        for request in requests:
            mark_done(world, way, request, "saved")

    world.run(body)
    assert rows(connect) == ["id-2"]
    assert world.states == ["FAILURE"] * 3


@pytest.mark.parametrize(
    ("bisects", "saved", "states"),
    [
        (False, ["id-2"], ["FAILURE"] * 3),
        (sqlite3.IntegrityError, ["id-0", "id-1", "id-2"], ["SUCCESS", "SUCCESS", "FAILURE"]),
    ],
)
def test_a_result_that_is_returned_is_true(
    world: World, connect: Any, bisects: Any, saved: Any, states: Any
) -> None:
    """Nothing is marked before the transaction has ended. Run in halves, each run has its own."""

    def body(requests: Any) -> list[str]:
        with closing(connect()) as connection, connection:
            for request in requests:
                insert(connection, request)
        return ["saved"] * len(requests)

    world.define(body, return_results=True, bisect_on_failure=bisects)
    world.run(None)
    assert rows(connect) == saved
    assert world.states == states
