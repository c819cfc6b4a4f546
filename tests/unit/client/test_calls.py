"""The forms of a call."""

from __future__ import annotations

from typing import Any

import pytest

from celery_batches.client.calls import Call, read_args, read_call

NAME = "unit.click"


def found(call: Call) -> tuple[Any, Any]:
    assert not call.is_named
    assert len(call.task_id) == 36
    return call.args, call.kwargs


@pytest.mark.parametrize(
    ("item", "args", "kwargs"),
    [
        ((1, 2), (1, 2), {}),
        ([1, [2]], (1, [2]), {}),
        ((), (), {}),
        ({"a": 1}, (), {"a": 1}),
        (({"a": 1},), ({"a": 1},), {}),
    ],
)
def test_the_arguments_of_a_call(item: Any, args: Any, kwargs: Any) -> None:
    """As ``delay(*args)`` or ``delay(**kwargs)`` would get them."""
    assert found(read_args(NAME, item)) == (args, kwargs)


@pytest.mark.parametrize("item", [5, "text", b"bytes", None, {1, 2}, iter("ab")])
def test_what_are_no_arguments(item: Any) -> None:
    """A string has characters, and a set no order. The error says how to write one argument."""
    with pytest.raises(TypeError, match=r"For one argument, write \(.*,\)") as error:
        read_args(NAME, item)
    assert NAME in str(error.value)


@pytest.mark.parametrize(
    ("item", "args", "kwargs"),
    [
        (((1, 2),), (1, 2), None),
        (([1], {"a": 2}), [1], {"a": 2}),
        ([(1,), None], (1,), None),
        ((None, {"a": 2}), None, {"a": 2}),
        ({"args": (1,)}, (1,), None),
        ({"kwargs": {"a": 1}}, None, {"a": 1}),
        ({}, None, None),
    ],
)
def test_a_call(item: Any, args: Any, kwargs: Any) -> None:
    assert found(read_call(NAME, item)) == (args, kwargs)


def test_a_call_with_options() -> None:
    """Its own options, and its id. It can be read again."""
    item = {"args": (1,), "kwargs": None, "task_id": "a", "countdown": 10}
    call = read_call(NAME, item)
    assert (call.args, call.task_id, call.is_named) == ((1,), "a", True)
    assert call.options == {"countdown": 10}
    assert call.as_dict() == item
    assert read_call(NAME, call.as_dict()) == call


def test_a_signature(app: Any) -> None:
    """A signature of the task, with all that it has been given."""
    sig = app.signature(NAME, args=(1,), kwargs={"a": 2}).set(countdown=3, task_id="a")
    call = read_call(NAME, sig)
    assert call.as_dict() == {"args": (1,), "kwargs": {"a": 2}, "countdown": 3, "task_id": "a"}


def test_a_signature_of_another_task(app: Any) -> None:
    with pytest.raises(TypeError, match=r"signature of 'unit\.other'"):
        read_call(NAME, app.signature("unit.other"))


@pytest.mark.parametrize("item", [5, (), (1,), (1, 2), ((), {}, {}), "text", ((), 5), ("a", {})])
def test_what_is_no_call(item: Any) -> None:
    with pytest.raises(TypeError, match=r"a call is \(args,\), \(args, kwargs\), a signature"):
        read_call(NAME, item)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "10", None, True])
def test_a_chunk_of_no_size(deploy: Any, chunk: Any) -> None:
    with pytest.raises(ValueError, match="Set for example chunk=1000"):
        deploy("memory").task.apply_async_many([], chunk=chunk)


@pytest.mark.parametrize("option", ["args", "kwargs", "task_id"])
def test_what_each_call_has_for_itself(deploy: Any, option: str) -> None:
    with pytest.raises(TypeError, match=f"{option} is not an option of all calls"):
        deploy("memory").task.apply_async_many([], **{option: "x"})
