"""Celery's tracer, and the stand-in for the task that it is given."""

from __future__ import annotations

import functools
import logging
from typing import Any
from unittest.mock import Mock

import celery.app.trace
import pytest
from celery import Task, current_task

from celery_batches import Batches
from celery_batches.pool.body import body_of
from celery_batches.pool.tracer import BatchTask
from kit.tracing import World


def test_the_stand_in_is_the_task(app: Any) -> None:
    """It has the class of the task, is equal to it, and reads and writes its attributes."""

    @app.task(base=Batches, name="unit.click")
    def click(requests: Any) -> None: ...

    task = app.tasks["unit.click"]
    stand_in = BatchTask(task)
    stand_in.end_build()
    assert stand_in == task
    assert isinstance(stand_in, type(task))
    assert stand_in.name == "unit.click"
    stand_in.of_a_tool = {"a": 1}
    assert task.of_a_tool == {"a": 1}
    task.of_a_tool = 2
    assert stand_in.of_a_tool == 2


def test_what_a_tool_marks_while_it_builds_a_tracer_stays_with_that_tracer(app: Any) -> None:
    """A mark on the task itself does not show, and one on the stand-in does not go to the task."""

    @app.task(base=Batches, name="unit.click")
    def click(requests: Any) -> None: ...

    task = app.tasks["unit.click"]
    task.wrapped_by_a_tool = True
    stand_in = BatchTask(task)
    assert not hasattr(stand_in, "wrapped_by_a_tool")
    stand_in.wrapped_by_a_tool = "the stand-in"
    stand_in.run = run = lambda *args: args
    stand_in.end_build()
    assert task.wrapped_by_a_tool is True
    assert task.run is not run
    assert stand_in("a", "b") == ("a", "b"), "calling it runs what was wrapped"


def test_build_tracer_is_looked_up_when_it_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools replace it in its module, some of them when the pool process starts."""
    built: list[Any] = []
    build_tracer = celery.app.trace.build_tracer

    def build(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        built.append((name, type(task).__mro__[1]))
        return build_tracer(name, task, *args, **kwargs)

    monkeypatch.setattr(celery.app.trace, "build_tracer", build)
    world.define(lambda requests: None)
    world.run(None)
    world.run(None)
    assert built == [("unit.click", BatchTask)]


def test_two_tasks_do_not_share_what_a_tool_wraps(app: Any) -> None:
    """Some tools wrap `__call__` of the class, with the task in their closure."""
    seen: list[str] = []
    build_tracer = celery.app.trace.build_tracer

    def build(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        call = type(task).__call__

        def wrapped(self: Any, *args: Any) -> Any:
            seen.append(name)
            return call(self, *args)

        type(task).__call__ = wrapped
        return build_tracer(name, task, *args, **kwargs)

    class Calling(Batches):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    tasks = [app.task(base=Calling, name=f"unit.calling.{i}")(_empty(i)) for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(celery.app.trace, "build_tracer", build)
        for task in tasks:
            task.apply(("x",))
            task.apply(("x",))
    assert seen == ["unit.calling.0"] * 2 + ["unit.calling.1"] * 2


def _empty(number: int) -> Any:
    def body(requests: Any) -> None: ...

    body.__name__ = f"body{number}"
    return body


def test_the_body_is_below_what_tools_have_put_around_the_task(app: Any) -> None:
    """A worker builds a tracer for each task when it starts, and tools wrap the task then.

    A batch is wrapped once all the same. Autoretry is part of the body.
    """
    called: list[str] = []

    @app.task(base=Batches, name="unit.click", autoretry_for=(OSError,))
    def click(requests: Any) -> None:
        called.append("body")

    app.finalize()
    task = app.tasks["unit.click"]
    autoretry = task.run

    @functools.wraps(autoretry)
    def wrapper(*args: Any) -> Any:
        called.append("wrapper")
        return autoretry(*args)

    task.run = wrapper
    assert body_of(task).run is autoretry
    task.apply(("x",))
    assert called == ["body"]


def test_what_replaces_the_body_counts(app: Any) -> None:
    """A test of an application may put a mock in its place."""

    @app.task(base=Batches, name="unit.click")
    def click(requests: Any) -> None: ...

    app.finalize()
    mock = app.tasks["unit.click"].run = Mock(return_value=3)
    assert click.apply(("x",)).get() == 3
    mock.assert_called_once()


def test_the_current_task_is_the_task_itself(world: World) -> None:
    """Not what stands for it."""
    seen: list[Any] = []

    def body(requests: Any) -> None:
        seen.append(current_task._get_current_object())

    task = world.app.tasks[world.define(body).name]
    world.run(None)
    assert [each is task for each in seen] == [True]


def test_the_log_has_one_line_for_a_batch(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Celery's own line is left out for a batch, and stays for ordinary tasks in its body."""

    @app.task(name="unit.ordinary")
    def ordinary() -> None: ...

    @app.task(base=Batches, name="unit.click")
    def click(requests: Any) -> None:
        ordinary.apply()

    with caplog.at_level(logging.INFO, "celery"), caplog.at_level(logging.INFO, "celery_batches"):
        click.apply(("x",))
    lines = [record.getMessage().split("[")[0] for record in caplog.records]
    assert lines == ["Task unit.ordinary", "Batch unit.click"]


@pytest.mark.parametrize("base", [Batches, Task])
def test_errors_that_propagate_are_told_to_nobody(app: Any, signal_log: Any, base: Any) -> None:
    """With throw=True a call that is run eagerly raises, as an ordinary one does."""

    @app.task(base=base, name="unit.fails")
    def fails(*_: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fails.apply(("x",), throw=True)
    assert [name for name, *_ in signal_log] == ["task_prerun", "task_postrun"]
