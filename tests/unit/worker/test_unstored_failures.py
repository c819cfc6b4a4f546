"""A failure that the pool could not store is stored and told by the main process."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import signals

from celery_batches import Batches
from celery_batches.errors import UnstoredFailure
from celery_batches.pool.trace import trace_batch
from kit.jobs import RecordedJob, boom


class Away:
    """Makes every write of a result backend fail while it is away."""

    def __init__(self, backend: Any, patch: pytest.MonkeyPatch) -> None:
        self.is_away = True
        #: How many more writes fail when it is back.
        self.broken = 0
        store = backend._store_result

        def _store_result(*args: Any, **kwargs: Any) -> Any:
            if self.is_away or self.broken:
                self.broken = max(0, self.broken - 1)
                raise ConnectionError("away")
            return store(*args, **kwargs)

        patch.setattr(backend, "_store_result", _store_result)


class Handled(Batches):
    abstract = True
    said: list[tuple[str, str]]

    def on_failure(self, exc: Any, task_id: str, *args: Any) -> None:
        self.said.append(("on_failure", task_id))


@pytest.fixture
def told() -> Any:
    """The ids for which `task_failure` is sent."""
    ids: list[str] = []

    def on_failure(sender: Any, task_id: str, **_: Any) -> None:
        ids.append(task_id)

    signals.task_failure.connect(on_failure)
    yield ids
    signals.task_failure.disconnect(on_failure)


@pytest.mark.parametrize("acks_late", [False, True])
@pytest.mark.parametrize("fails", ["its mark", "its result", "the body"])
def test_the_main_process_stores_and_tells(
    app: Any, monkeypatch: pytest.MonkeyPatch, told: list[str], fails: str, acks_late: bool
) -> None:
    """The caller gets the failure, its errback and signal; handlers are not told twice."""

    def body(requests: Any) -> None:
        if fails == "the body":
            raise KeyError("boom")
        for request in requests:
            if fails == "its mark":
                request.mark_as_failure(KeyError("boom"))
            else:
                request.mark_as_done(1)

    errors: list[str] = []

    @app.task(name="unit.errback", lazy=False)
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        errors.append(request.id)

    headers = [{"errbacks": [errback.s()]}] * 3
    task_class = type("Own", (Handled,), {"abstract": True, "said": []})
    recorded = RecordedJob(app, body=body, base=task_class, acks_late=acks_late, headers=headers)
    away = Away(app.backend, monkeypatch)
    options = recorded.send()
    options["accept_callback"](1, 0.0)
    (call,) = recorded.pool.calls
    returned = trace_batch(*call.args)
    broken, reports, runtime = pickle.loads(pickle.dumps(returned))
    assert all(isinstance(report, UnstoredFailure) for _, report in reports)
    assert (errors, recorded.task.said) == ([], [])
    away.is_away = False
    options["callback"]((broken, reports, runtime))
    ids = ["id-0", "id-1", "id-2"]
    assert [app.AsyncResult(id).state for id in ids] == ["FAILURE"] * 3
    expected = ConnectionError if fails == "its result" else KeyError
    assert isinstance(app.AsyncResult("id-0").result, expected)
    assert errors == ids
    assert [id for id in told if id in ids] == ids
    assert recorded.said == [["ack"]] * 3
    assert recorded.finished


@pytest.mark.parametrize(("broken", "states"), [(1, ["FAILURE"] * 3), (2, ["PENDING", "FAILURE"])])
def test_a_connection_that_was_lost_meanwhile(
    app: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: int,
    states: list[str],
) -> None:
    """The main process tries twice. If that does not help, the neighbours are told all the same."""
    recorded = RecordedJob(app)
    away = Away(app.backend, monkeypatch)
    away.is_away, away.broken = False, broken
    options = recorded.send()
    failure = UnstoredFailure(boom())
    options["callback"]((False, [(True, failure)] * 3, 0.5))
    assert [app.AsyncResult(f"id-{n}").state for n in range(len(states))] == states
    assert caplog.text.count("cannot notify a request") == (broken == 2)
    assert recorded.finished


def test_it_is_only_for_what_was_not_stored(app: Any) -> None:
    """A failure that was stored is told as before, by the pool alone."""
    recorded = RecordedJob(app, body=lambda requests: requests[0].mark_as_failure(KeyError()))
    options = recorded.send()
    (call,) = recorded.pool.calls
    _, reports, _ = trace_batch(*call.args)
    assert [type(report).__name__ for _, report in reports] == ["ExceptionInfo", "str", "str"]
    assert options["callback"] == recorded.job.on_success
