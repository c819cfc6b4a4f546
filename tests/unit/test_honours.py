"""The table of what a batch honours: complete, and each row has its test."""

from __future__ import annotations

import ast
import csv
import re
from collections import Counter
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import kombu
import pytest
from celery import Celery, Task
from celery.app.amqp import AMQP
from celery.backends.cache import CacheBackend
from celery.exceptions import OperationalError
from kombu.utils.uuid import uuid

from celery_batches import Batches, SimpleRequest
from celery_batches.pool.trace import trace_batch
from kit.messages import protocol_2
from kit.requests import worker_request

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"


class Row(NamedTuple):
    """A line of a table: which options, what they apply to, what they mean, the test."""

    options: str
    scope: str
    meaning: str
    test: str

    @property
    def names(self) -> set[str]:
        return set(re.findall(r"``(\w+)``", self.options))


def read(name: str) -> list[Row]:
    with (DOCS / name).open(newline="") as file:
        return [Row(*cells) for cells in csv.reader(file)][1:]


TASK, CALL = read("honours-task.csv"), read("honours-call.csv")


def names_in(rows: list[Row]) -> set[str]:
    return set().union(*(row.names for row in rows))


def defined_in(path: Path) -> set[str]:
    """The functions of a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


DEFINED = Counter(name for path in TESTS.rglob("test_*.py") for name in defined_in(path))
NOT_PAGES = {"_build", "_tables", "_static", "examples"}
PAGES = [path for path in DOCS.rglob("*.rst") if not NOT_PAGES & set(path.parts)]


@pytest.mark.parametrize("row", [*TASK, *CALL], ids=lambda row: row.options)
def test_each_row_has_its_test(row: Any) -> None:
    """The test that a row names is there, and it is one: a table need not say in which file."""
    assert row.scope in ("each request", "the batch", "the message")
    assert row.test.startswith("test_")
    assert DEFINED[row.test] == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_tests_that_are_there(page: Path) -> None:
    """A page that names a test, or a file of tests, names one that exists."""
    for path, name in re.findall(r"``(?:(tests/[\w/]+\.py)|(test_\w+))``", page.read_text()):
        assert DEFINED[name] == 1 if name else (TESTS.parent / path).is_file(), path or name


def test_no_option_of_a_task_is_left_out() -> None:
    """Whatever the installed Celery has on a task, or reads from one, is in the table."""
    public = {name for name in dir(Task) if not name.startswith("_")}
    read = {"autoretry_for", "dont_autoretry_for", "retry_kwargs", "retry_backoff"}
    read |= {"retry_backoff_max", "retry_jitter", "bind"}
    decorator = {name for name in signature(Celery._task_from_fun).parameters if "pydantic" in name}
    # What an ordinary task takes from attributes when it is called.
    sent = {"queue", "exchange", "routing_key", "priority", "expires", "serializer", "compression"}
    sent |= {"delivery_mode", "mandatory", "immediate", "time_limit", "soft_time_limit"}
    assert public | read | decorator | sent <= names_in(TASK)


def test_no_option_of_a_batch_is_left_out() -> None:
    """The options that Batches adds are in the table too."""
    own = {name for name in vars(Batches) if not name.startswith("_")}
    internal = {"flush", "apply_buffer", "flush_interval_seconds", "retry_request", "bind"}
    assert own - internal <= names_in(TASK)


@pytest.mark.parametrize(
    "function",
    [Task.apply_async, Celery.send_task, AMQP.as_task_v2, kombu.Producer.publish],
    ids=lambda function: function.__qualname__,
)
def test_no_option_of_a_call_is_left_out(function: Any) -> None:
    """Whatever the installed Celery takes for a call is in the table."""
    assert set(signature(function).parameters) - {"self", "name", "body"} <= names_in(CALL)


# Sending: a batch task is called as any task.


class Sent:
    """What the broker is given for a call."""

    def __init__(self, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[Any] = []
        original = kombu.Producer._publish

        def publish(producer: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
            self.messages.append((body, args, kwargs))
            return original(producer, body, *args, **kwargs)

        monkeypatch.setattr(kombu.Producer, "_publish", publish)

    def take(self, task_name: str) -> str:
        (message,) = self.messages
        self.messages.clear()
        # New for each message, and the milliseconds until `expires`.
        own = re.compile(r"'(delivery_tag|expiration)': '[^']*'")
        return own.sub("", repr(message).replace(task_name, "TASK"))


CALLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "arguments": {"args": (1, 2), "kwargs": {"a": 3}},
    "countdown": {"eta": "2101-01-01T00:00:00+00:00"},
    "expires": {"expires": "2101-01-01T00:00:00+00:00"},
    "limits": {"time_limit": 30, "soft_time_limit": 20},
    "ignore_result": {"ignore_result": True},
    "routing": {"queue": "other"},
    "exchange": {"exchange": "other", "routing_key": "key"},
    "priority": {"priority": 7},
    "headers": {"headers": {"x": 1}},
    "stamps": {"stamped_headers": ["x"], "x": "y"},
    "shadow": {"shadow": "other"},
    "identity": {"root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 3},
    "retries": {"retries": 4},
    "reprs": {"argsrepr": "<hidden>", "kwargsrepr": "<hidden>"},
    "serializer": {"serializer": "pickle", "args": ({1},)},
    "compression": {"compression": "zlib", "args": ("x" * 100,)},
    "expiration": {"expiration": 9},
    "delivery_mode": {"delivery_mode": "transient"},
    "mandatory": {"mandatory": True},
    "retry": {"retry": False},
    "retry_policy": {"retry": True, "retry_policy": {"max_retries": 1}},
    "add_to_parent": {"add_to_parent": False},
    "replaced_task_nesting": {"replaced_task_nesting": 2},
}


def twins(app: Any, **options: Any) -> tuple[Any, Any]:
    def body(requests: Any) -> None: ...

    make = {"typing": False, **options}
    return (
        app.task(name="unit.batch", base=Batches, **make)(body),
        app.task(name="unit.plain", **make)(body),
    )


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_sent_as_for_any_task(
    app: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever a call is given, its message is that of an ordinary task."""
    sent = Sent(app, monkeypatch)
    said = []
    for task in twins(app):
        options = {"task_id": "id", **CALLS[call]}
        task.apply_async(**options)
        said.append(sent.take(task.name))
    assert said[0] == said[1]


@pytest.mark.parametrize("way", ["connection", "producer", "publisher"])
def test_a_call_on_a_connection_of_its_own(
    app: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A call may bring its connection or its producer."""
    sent = Sent(app, monkeypatch)
    batch, _ = twins(app)
    with app.connection_for_write() as connection:
        own = connection if way == "connection" else app.amqp.Producer(connection)
        batch.apply_async((1,), **{way: own})
    assert "unit.batch" not in sent.take(batch.name)


OF_THE_TASK: dict[str, Any] = {
    "queue": "other",
    "exchange": "other",
    "routing_key": "key",
    "priority": 6,
    "expires": None,
    "serializer": "pickle",
    "compression": "zlib",
    "delivery_mode": "transient",
    "time_limit": 9,
    "soft_time_limit": 8,
    "mandatory": True,
    "immediate": True,
    "ignore_result": True,
}


# Celery 5.7 advises against some of them.
@pytest.mark.filterwarnings("ignore:[^']*'\\w+' task attribute is deprecated")
@pytest.mark.parametrize("option", OF_THE_TASK)
def test_options_of_the_task_are_sent_as_for_any_task(
    app: Any, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Options of the task go with its calls, as for an ordinary task."""
    sent = Sent(app, monkeypatch)
    said = []
    for task in twins(app, **{option: OF_THE_TASK[option]}):
        task.apply_async((1,), task_id="id")
        said.append(sent.take(task.name))
    assert said[0] == said[1]


def test_expires_of_the_task(app: Any) -> None:
    """An expiry of the task is one of each of its calls."""
    batch, _ = twins(app, expires=60)
    assert batch._get_exec_options()["expires"] == 60


def test_signatures_are_those_of_any_task(app: Any) -> None:
    """s, si, signature and delay make the same calls as those of an ordinary task."""
    made = []
    for task in twins(app):
        signatures = [task.s(1, a=2), task.si(1), task.signature((1,), countdown=3), task.subtask()]
        made.append([{**dict(sig), "task": None} for sig in signatures])
    assert made[0] == made[1]


def test_a_call_that_cannot_be_sent(app: Any) -> None:
    """The caller gets Celery's OperationalError, which the task has as an attribute."""
    batch, _ = twins(app)
    app.conf.broker_url = "redis://127.0.0.1:1//"  # Where nobody listens.
    with pytest.raises(batch.OperationalError):
        batch.apply_async((1,), retry=False)
    assert batch.OperationalError is OperationalError


def test_typing(app: Any) -> None:
    """Calls are not checked by the signature of the body, unless that is asked for."""
    batch, _ = twins(app)
    strict = app.task(name="unit.strict", base=Batches, typing=True)(lambda_free_body)
    batch.delay(1, 2, 3)
    with pytest.raises(TypeError):
        strict.delay(1, 2, 3)


def lambda_free_body(requests: Any) -> None: ...


def test_shadow_name(app: Any) -> None:
    """A task may make up the name that each call is shown under."""

    class Shady(Batches):
        abstract = True

        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
            return f"shady-{args[0]}"

    task = app.task(name="unit.shady", base=Shady)(lambda_free_body)
    with pytest.MonkeyPatch.context() as patch:
        sent = Sent(app, patch)
        task.delay(5)
        assert "'shadow': 'shady-5'" in sent.take("nothing")


def test_results_of_the_task(app: Any) -> None:
    """task.AsyncResult is the result of one request."""

    def body(requests: Any) -> None:
        requests[0].mark_as_done("mine")

    task = app.task(name="unit.click", base=Batches)(body)
    run(app, task)
    assert task.AsyncResult("id-0").get(timeout=1) == "mine"


def run(app: Any, task: Any, count: int = 2) -> Any:
    requests = []
    for number in range(count):
        message = protocol_2(app, f"id-{number}", task.name)
        requests.append(SimpleRequest.from_request(worker_request(app, task, message)))
    return trace_batch(task.name, uuid(), requests, "size", "w@h")[1]


def test_a_backend_of_its_own(app: Any) -> None:
    """A task may have another result backend than its app: states are stored there."""
    stored: list[Any] = []

    class Kept(CacheBackend):
        def store_result(self, task_id: str, result: Any, state: str, *a: Any, **k: Any) -> Any:
            stored.append((task_id, state))

    def body(requests: Any) -> None:
        requests[0].mark_as_done(1)
        raise KeyError("boom")

    task = app.task(name="unit.click", base=Batches, backend=Kept(app=app, backend="memory"))(body)
    run(app, task)
    assert stored == [("id-0", "SUCCESS"), ("id-1", "FAILURE")]
    assert app.AsyncResult("id-1").state == "PENDING"


def test_resultrepr_maxsize(app: Any) -> None:
    """What the worker tells of a result is cut to that length, or nearly."""

    def body(requests: Any) -> str:
        requests[0].mark_as_done("x" * 1000)
        return "y" * 1000

    task = app.task(name="unit.click", base=Batches, resultrepr_maxsize=50)(body)
    for _, report in run(app, task):
        assert len(report) < 100


@pytest.mark.parametrize("only", [None, "id-1"])
def test_send_event(app: Any, monkeypatch: pytest.MonkeyPatch, only: Any) -> None:
    """An event of one's own is sent for each request, or for one."""
    sent: list[Any] = []
    monkeypatch.setattr(
        "celery.events.dispatcher.EventDispatcher.send",
        lambda self, type, **fields: sent.append((type, fields["uuid"], fields["step"])),
    )

    def body(self: Any, requests: Any) -> None:
        self.send_event("task-progress", step=1, **({"uuid": only} if only else {}))

    task = app.task(name="unit.click", base=Batches, bind=True)(body)
    run(app, task)
    expected = [only] if only else ["id-0", "id-1"]
    assert sent == [("task-progress", id, 1) for id in expected]


def test_send_event_outside_of_a_batch(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no batch runs, it is Celery's own."""
    sent: list[Any] = []
    monkeypatch.setattr(
        "celery.events.dispatcher.EventDispatcher.send",
        lambda self, type, **fields: sent.append((type, fields["uuid"])),
    )
    batch, _ = twins(app)
    batch.send_event("task-odd")
    assert sent == [("task-odd", None)]
