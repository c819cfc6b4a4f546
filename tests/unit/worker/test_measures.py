"""The key and the weight of each request: what they may be, and what an error does."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state

from celery_batches import SimpleRequest
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.messages import PROTOCOLS, protocol_2
from kit.tasks import make_task


@pytest.fixture
def make(app: Any, clock: Clock) -> Any:
    def make(**options: Any) -> BatchWorker:
        options = {"flush_every": 3, "flush_interval": 10, **options}
        return BatchWorker(make_task(app, **options), clock)

    return make


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]


def keys_of(worker: BatchWorker, keys: list[Any]) -> list[list[Any]]:
    """The keys in each batch of calls with these."""
    values = list(keys)
    worker.task.flush_key = lambda request: values[request.args[0]]
    for _ in keys:
        worker.send()
    worker.advance(10)
    return [[values[r.args[0]] for r in job.requests] for job in worker.consumer.sent]


@pytest.mark.parametrize("make_call", PROTOCOLS)
def test_the_function_gets_what_a_body_gets(make: Any, make_call: Any) -> None:
    """A `SimpleRequest`, whatever the protocol."""
    seen: list[Any] = []

    def key(request: SimpleRequest) -> Any:
        seen.append(request)
        return request.kwargs["account"]

    worker = make(flush_key=key)
    worker.send(make_call, kwargs={"account": 7})
    (request,) = seen
    assert isinstance(request, SimpleRequest)
    assert (request.id, request.name, list(request.args)) == ("id-0", "unit.click", [0])
    assert worker.waiting == 1


def test_a_method_of_the_task(app: Any, clock: Clock) -> None:
    """A key function may be a method; then it gets the task too."""
    from celery_batches import Batches

    class Own(Batches):
        abstract = True
        modulus = 2

        def flush_key(self, request: SimpleRequest) -> int:
            return request.args[0] % self.modulus  # type: ignore[no-any-return]

    worker = BatchWorker(make_task(app, base=Own, flush_every=2), clock)
    for _ in range(4):
        worker.send()
    assert worker.batches == [("size", ["id-0", "id-2"]), ("size", ["id-1", "id-3"])]


def test_keys_that_are_equal_are_one_key(make: Any) -> None:
    """As in a dictionary, whatever their types."""
    assert keys_of(make(), [1, True, 1.0]) == [[1, True, 1.0]]
    assert keys_of(make(), ["1", 1, b"1"]) == [["1"], [1], [b"1"]]


def test_none_is_a_key(make: Any) -> None:
    assert keys_of(make(), [None, "a", None, None]) == [[None, None, None], ["a"]]


def test_nan_is_one_key(make: Any) -> None:
    """It is not equal to itself, so that each call would be alone in a dictionary."""
    nans = [float("nan"), float("nan"), Decimal("nan")]
    assert keys_of(make(), nans) == [nans]


def test_a_key_that_cannot_be_hashed_fails_its_call_alone(make: Any, caplog: Any) -> None:
    worker = make()
    keys = ["a", ["a"], "a", "a"]
    assert keys_of(worker, keys) == [["a", "a", "a"]]
    result = worker.app.backend.get_task_meta("id-1")
    assert result["status"] == "FAILURE"
    assert isinstance(result["result"], TypeError)
    (line,) = errors_in(caplog)
    assert "['a'] cannot be a key" in line


@pytest.mark.parametrize("acks_late", [True, False])
@pytest.mark.parametrize("option", ["flush_key", "flush_weight"])
def test_a_function_that_raises_fails_its_call_alone(
    make: Any, acks_late: bool, option: str, caplog: Any, signal_log: Any
) -> None:
    """With its own exception, as in a body: result, message, signal; one line in the log."""

    def measure(request: SimpleRequest) -> int:
        if request.args[0] == 1:
            raise LookupError("no account")
        return 1

    options = {"flush_weight": lambda request: 1, option: measure, "flush_max_weight": 99}
    worker = make(acks_late=acks_late, **options)
    messages = [worker.send() for _ in range(4)]
    assert worker.batches == [("size", ["id-0", "id-2", "id-3"])]
    result = worker.app.backend.get_task_meta("id-1")
    assert (result["status"], repr(result["result"])) == ("FAILURE", "LookupError('no account')")
    assert messages[1].channel.said == [("ack", "tag")]
    assert "id-1" not in worker_state.requests
    assert [(name, args["task_id"]) for name, _, args in signal_log] == [("task_failure", "id-1")]
    (line,) = errors_in(caplog)
    for word in ("unit.click", option, "id-1", "LookupError('no account')"):
        assert word in line


def test_a_failed_call_is_requeued_as_its_options_say(make: Any) -> None:
    def measure(request: SimpleRequest) -> int:
        raise LookupError

    worker = make(flush_key=measure, acks_late=True, acks_on_failure_or_timeout=False)
    message = worker.send()
    assert message.channel.said == [("reject", "tag")]


@pytest.mark.parametrize("exc", [Ignore(), Reject(requeue=False)], ids=repr)
def test_a_function_may_raise_what_means_itself(make: Any, exc: Exception, caplog: Any) -> None:
    """As in a task: that is no error."""

    def measure(request: SimpleRequest) -> int:
        raise exc

    worker = make(flush_key=measure, acks_late=True)
    message = worker.send()
    assert message.channel.said == [("reject" if isinstance(exc, Reject) else "ack", "tag")]
    assert errors_in(caplog) == []


def test_a_call_without_the_keyword_argument_fails_alone(make: Any, caplog: Any) -> None:
    worker = make(flush_key="account")
    worker.send()
    worker.send(kwargs={"account": 1})
    assert worker.waiting == 1
    assert isinstance(worker.app.backend.get_task_meta("id-0")["result"], LookupError)
    (line,) = errors_in(caplog)
    assert "unit.click.delay(account=...)" in line


def test_a_function_that_fails_on_a_lost_connection_fails_nothing(make: Any) -> None:
    """The broker delivers the call again."""

    def measure(request: SimpleRequest) -> int:
        worker.consumer.connection = SimpleNamespace()
        raise LookupError

    worker = make(flush_key=measure)
    message = worker.send()
    assert message.channel.said == []
    assert worker.app.backend.get_task_meta("id-0")["status"] == "PENDING"
    assert "id-0" not in worker_state.requests


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "9", None, [], 1j], ids=repr)
def test_a_weight_that_makes_no_sense_fails_its_call_alone(
    make: Any, weight: Any, caplog: Any
) -> None:
    weights = [1, weight, 1, 1]
    worker = make(flush_weight=lambda request: weights[request.args[0]], flush_max_weight=99)
    for _ in weights:
        worker.send()
    assert worker.batches == [("size", ["id-0", "id-2", "id-3"])]
    assert isinstance(worker.app.backend.get_task_meta("id-1")["result"], ValueError)
    (line,) = errors_in(caplog)
    assert "flush_weight" in line
    assert repr(weight) in line


def test_the_weight_may_be_the_size_of_the_message(make: Any) -> None:
    """A batch stays within so many bytes."""
    worker = make(flush_weight="bytes", flush_max_weight=2000, flush_every=99)
    sizes = [len(worker.send(kwargs={"text": "x" * 400}).body) for _ in range(5)]
    assert 400 < max(sizes) < 500
    assert worker.batches == [("weight", ["id-0", "id-1", "id-2", "id-3"])]


def test_nothing_is_measured_where_no_option_is_set(make: Any, monkeypatch: Any) -> None:
    """A plain task pays nothing for it."""
    worker = make()
    monkeypatch.setattr(worker.strategy, "_facts", None)
    for _ in range(3):
        worker.send(protocol_2)
    assert len(worker.batches) == 1
