"""Whatever strangers send, in any order: each message is run, dropped or refused, once."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from celery.worker import state as worker_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.compression import compress
from nonsense import BODIES, HEADERS, PROTOCOLS, Sent, call, nested

from kit.clock import Clock
from kit.endings import TASKS
from kit.log import Problems
from kit.worker import InProcessWorker, deliver

FORMATS = ["%s%n%(x)s", "{0.__class__}", "{}", "%", "\x00", "\ud800", "a\nb", "ü", "", "0"]

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**70), 10**400])
    | st.floats()
    | st.sampled_from(FORMATS)
    | st.text(max_size=5)
)

json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=3)
    ),
    max_leaves=6,
)

header_values = (
    json_values
    | st.sampled_from([b"", b"\xff", datetime(2020, 1, 1), Decimal("1.5"), Decimal("NaN")])
    | st.sampled_from([json.loads(nested(depth)) for depth in (5, 100, 800)])
    | st.just("x" * 100_000)
)

names = st.sampled_from(
    [
        *HEADERS,
        *("lang", "group", "group_index", "root_id", "parent_id", "argsrepr", "kwargsrepr"),
        *("origin", "ignore_result", "replaced_task_nesting", "compression", "args", "kwargs"),
        *("callbacks", "errbacks", "chain", "chord", "properties", "reply_to", "correlation_id"),
        *("hostname", "delivery_info", "headers", "is_eager", "called_directly", "logfile"),
        *("_celery_batches_running", "update", "__dict__", "__class__", "get", "x", "utc"),
    ]
)

canvas = [5, [5], [{}], [{"task": "unit.click"}], {"task": "x"}, "x", {}]

#: The same each time: Hypothesis has to find the same message again.
LATER = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()

ids = st.sampled_from([f"id-{i}" for i in range(12)])


@st.composite
def good_calls(draw: Any) -> Sent:
    """A call as a client of Celery sends it."""
    more: dict[str, Any] = {"timelimit": draw(st.sampled_from([[None, None], [60, 30]]))}
    if draw(st.integers(0, 3)) == 0:
        more["eta"] = LATER
    task, protocol = draw(st.sampled_from(TASKS)), draw(st.sampled_from(PROTOCOLS))
    sent = call(task, draw(ids), [draw(json_values)], protocol, **more)
    if draw(st.integers(0, 9)) == 0:
        sent.body, sent.headers["compression"] = compress(sent.body, "zlib")
    return sent


@st.composite
def odd_calls(draw: Any) -> Sent:
    """A call with something about it that is not as it should be; it may still be one."""
    sent: Sent = draw(good_calls())
    for _ in range(draw(st.integers(1, 2))):
        draw(st.sampled_from([change_header, change_header, change_body, lie]))(draw, sent)
    return sent


def change_header(draw: Any, sent: Sent) -> None:
    name = draw(names)
    if draw(st.integers(0, 4)) == 0:
        sent.headers.pop(name, None)
    else:
        sent.headers[name] = draw(st.sampled_from(HEADERS.get(name, canvas)) | header_values)


def change_body(draw: Any, sent: Sent) -> None:
    how = draw(st.sampled_from(["other", "cut", "any", "field", "field"]))
    if how == "other":
        sent.body = draw(st.sampled_from(BODIES) | st.binary(max_size=9))
    elif how == "cut":
        sent.body = sent.body[: draw(st.integers(0, len(sent.body)))]
    elif how == "any":
        sent.body = json.dumps(draw(json_values)).encode()
    elif sent.body.startswith((b"[", b"{")):
        change_field(draw, sent)


def change_field(draw: Any, sent: Sent) -> None:
    try:
        payload = json.loads(sent.body)
    except (ValueError, RecursionError):
        return
    fields = payload[2] if isinstance(payload, list) and len(payload) > 2 else payload
    if isinstance(fields, dict):
        name = draw(names)
        fields[name] = draw(st.sampled_from(HEADERS.get(name, canvas)) | json_values)
        sent.body = json.dumps(payload).encode()


def lie(draw: Any, sent: Sent) -> None:
    types = ["application/json", "application/x-python-serialize", "text/plain", "x/y", "", None]
    encodings = ["utf-8", "binary", "utf-16", "rot13", "hex", "no-such", "", None]
    sent.content_type = draw(st.sampled_from(types))
    sent.content_encoding = draw(st.sampled_from(encodings))


amqp = st.booleans()

steps = st.lists(
    st.tuples(st.just("good"), good_calls(), amqp)
    | st.tuples(st.just("odd"), odd_calls(), amqp)
    | st.tuples(st.just("revoke"), ids)
    | st.tuples(st.just("expire"), st.integers(0, 9))
    | st.tuples(st.just("clock"), st.sampled_from([1, 5, 10, 3600]))
    | st.tuples(st.sampled_from(["run", "lose"])),
    min_size=1,
    max_size=14,
)


def play(worker: InProcessWorker, steps: list[Any]) -> tuple[set[int], set[str]]:
    """Do all that; return which deliveries were good, and the ids of what need not be run."""
    goods, dropped = set(), set()
    for step, *what in steps:
        match step, what:
            case "good", [sent, amqp]:
                goods.add(deliver(worker, sent, amqp=amqp))
            case "odd", [sent, amqp]:
                deliver(worker, sent, amqp=amqp, again="x")
            case "revoke", [task_id]:
                dropped.add(task_id)
                worker_state.revoked.add(task_id)
            case "expire", [number] if worker.buffered:
                request = worker.buffered[number % len(worker.buffered)]
                request.expires = datetime(2001, 1, 1)
                dropped.add(request.id)
            case "clock", [seconds]:
                worker.advance(seconds)
            case (("run" | "lose"), _):
                worker.run_batch(lose=step == "lose")
    worker.finish()
    return goods, dropped


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_anything_in_any_order(
    tasks: Any, clock: Clock, revoked: list[Any], steps: list[Any]
) -> None:
    """Each message is run, dropped or refused, once; what is refused is logged, once."""
    worker_state.reset_state()
    worker_state.revoked.clear()
    revoked.clear()
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        goods, dropped = play(worker, steps)
        for tag, delivery in enumerate(worker.deliveries):
            assert len(worker.channel.of(tag)) == 1, (worker.channel.of(tag), delivery)
            assert worker.runs[tag] <= 1
            if tag in goods:
                task_id = delivery.sent.properties["correlation_id"]
                assert worker.runs[tag] == 1 or task_id in dropped, delivery
                assert worker.channel.of(tag) == ["ack"]
        not_run = len(worker.deliveries) - len(worker.runs)
        assert len(worker.refusals) == not_run - len(revoked), worker.refusals
        worker.assert_empty()
