"""A message without sense in it is refused before it can hurt its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import InvalidTaskError
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_batches.worker.checks import check_message
from kit.messages import make_message, protocol_1, protocol_2

HEADERS = {"task": "unit.click", "id": "1"}


def check(payload: Any) -> None:
    message = make_message(payload, HEADERS)
    # As Celery's consumer: the body is decoded only without the headers of protocol 2.
    check_message(message, None)


@pytest.mark.parametrize(
    "payload",
    [
        *([], [[]], [[], {}], [[], {}, {}, {}], "text", 5, None, True, [None, {}, {}]),
        *(["args", {}, {}], [5, {}, {}], [{"a": 1}, {}, {}], [[], [], {}], [[], "kwargs", {}]),
        *([[], None, {}], [[], {}, []], [[], {}, "embed"]),
    ],
    ids=repr,
)
def test_nonsense_of_protocol_2(payload: Any) -> None:
    """A body of protocol 2 that is not args, kwargs and embed is an InvalidTaskError."""
    with pytest.raises(InvalidTaskError):
        check(payload)


@pytest.mark.parametrize(
    "payload",
    [{"args": "text"}, {"args": 5}, {"args": None}, {"kwargs": []}, {"args": [], "kwargs": "x"}],
    ids=repr,
)
def test_nonsense_of_protocol_1(payload: Any) -> None:
    """A body of protocol 1 whose args or kwargs are of a wrong type is an InvalidTaskError."""
    with pytest.raises(InvalidTaskError, match="must be"):
        check_message(make_message({**HEADERS, **payload}), {**HEADERS, **payload})
    with pytest.raises(InvalidTaskError, match="must be"):
        check(payload)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("id", "shadow", "retries") for value in ([1], 1.5)]
    + [("shadow", -1), ("retries", -1)]
    + [("timelimit", value) for value in ([1], "12", ["1", "2"], [float("nan"), None], [-1, 1])]
    + [("stamps", "x"), ("stamped_headers", [5]), ("id", "\ud800"), ("id", None)],
    ids=str,
)
def test_nonsense_in_the_headers(name: str, value: Any) -> None:
    """A header that the worker itself goes by has to be of its type, in each protocol."""
    wrong = {**HEADERS, name: value}
    body = {**wrong, "args": [], "kwargs": {}}
    for message, payload in [
        (make_message([[], {}, {}], wrong), None),
        (make_message(body), body),
        (make_message(body, {}), None),
    ]:
        with pytest.raises((InvalidTaskError, ValueError)):
            check_message(message, payload)


@pytest.mark.parametrize("make", [protocol_1, protocol_2])
def test_what_celery_sends_is_let_in(app: Any, make: Any) -> None:
    """Each message that Celery makes is a call."""
    message = make(app, "1", "unit.click", ["a"], {"b": 1})
    check_message(message, message.payload if make is protocol_1 else None)


def test_no_embed_is_let_in() -> None:
    """A message that embeds nothing is a call."""
    check([[1], {"a": 1}, None])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["args", "kwargs", "embed", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_payload_is_a_call_or_an_invalid_task(payload: Any) -> None:
    """Whatever JSON a stranger sends, the answer is a call or InvalidTaskError, never a crash."""
    try:
        check(payload)
    except InvalidTaskError:
        return
    if isinstance(payload, dict):
        args, kwargs = payload.get("args", []), payload.get("kwargs", {})
    else:
        args, kwargs, _ = payload
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)


def test_a_body_that_is_no_json() -> None:
    """A body that cannot be decoded raises what Celery rejects it for."""
    message = make_message([[], {}, {}], HEADERS)
    message.body = b"\xff{not json"
    with pytest.raises(DecodeError):
        check_message(message, None)


def test_a_refused_content_type() -> None:
    """A content type that the app does not accept raises what Celery rejects it for."""
    message = make_message([[], {}, {}], HEADERS, serializer="pickle")
    message.accept = {"application/json"}
    with pytest.raises(ContentDisallowed):
        check_message(message, None)
