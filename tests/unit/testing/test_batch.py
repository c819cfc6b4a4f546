"""`celery_batches.testing`: a batch runs in a test, and nothing is sent or stored."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject
from kombu.exceptions import OperationalError

from celery_batches import Batches, SimpleRequest
from celery_batches.testing import make_request, run_batch


@pytest.fixture(autouse=True)
def _nowhere(app: Any) -> None:
    """Neither broker nor backend exists, so whatever is sent or stored is an error."""
    app.conf.update(
        broker_url="amqp://127.0.0.1:1//",
        broker_connection_timeout=0.1,
        result_backend="redis://127.0.0.1:1/0",
        result_backend_transport_options={"retry_policy": {"max_retries": 0}},
        task_publish_retry=False,
        task_store_eager_result=True,
    )


def end_each(task: Any, requests: Any) -> str:
    """Give each request the outcome that its first argument names."""
    for request in requests:
        way, *values = request.args
        match way:
            case "done":
                request.mark_as_done(*values)
            case "failed":
                request.mark_as_failure(KeyError(*values))
            case "retry":
                request.retry(exc=OSError("busy"), countdown=7, **request.kwargs)
            case "reject":
                request.reject()
            case "by the backend":
                task.app.backend.mark_as_done(request.id, *values, request=request)
            case "failed by the backend":
                task.app.backend.mark_as_failure(request.id, KeyError(*values), request=request)
            case "late":
                raise ValueError(*values)
    return "returned"


def make(app: Any, **options: Any) -> Any:
    @app.task(base=Batches, name="testing.each", bind=True, lazy=False, **options)
    def each(self: Any, requests: Any) -> str:
        return end_each(self, requests)

    return each


def test_each_outcome(app: Any) -> None:
    """States, results, exceptions and retries are those of a worker, in the order of the calls."""
    each = make(app)
    calls = [
        ("done", 1),
        each.s("failed", "x"),
        ("retry",),
        make_request(["reject"]),
        ["by the backend", 2],
        ("failed by the backend", "y"),
        ("nothing",),
    ]
    batch = run_batch(each, calls)
    assert batch.states == [
        *("SUCCESS", "FAILURE", "RETRY", "REJECTED", "SUCCESS", "FAILURE", "PENDING"),
    ]
    assert batch.results == [1, None, None, None, 2, None, None]
    done, failed, retried, rejected, _, by_backend, unmarked = batch
    assert (done.exception, done.retry, unmarked.exception) == (None, None, None)
    assert repr(failed.exception) == "KeyError('x')"
    assert repr(by_backend.exception) == "KeyError('y')"
    assert isinstance(rejected.exception, Reject)
    assert repr(retried.exception) == "OSError('busy')"
    assert retried.retry is not None
    assert retried.retry.when == 7
    assert (retried.retry.sig.args, retried.retry.sig.options["retries"]) == (("retry",), 1)
    assert (batch.returned, batch.exception) == ("returned", None)
    assert [outcome.request.args[0] for outcome in batch][:2] == ["done", "failed"]


def test_a_body_that_raises(app: Any) -> None:
    """What was marked before keeps its outcome. The rest fail."""
    batch = run_batch(make(app), [("done", 1), ("nothing",), ("late", "boom")])
    assert batch.states == ["SUCCESS", "FAILURE", "FAILURE"]
    assert repr(batch.exception) == "ValueError('boom')"
    assert batch.outcomes[1].exception is batch.exception
    assert batch.returned is None


@pytest.mark.parametrize(("raised", "state"), [(Reject(), "REJECTED"), (Ignore(), "IGNORED")])
def test_a_body_that_raises_for_the_worker(app: Any, raised: Exception, state: str) -> None:
    """`Ignore` and `Reject` mean themselves."""

    @app.task(base=Batches, lazy=False)
    def raises(requests: Any) -> None:
        raise raised

    assert run_batch(raises, [(1,), (2,)]).states == [state, state]


def test_a_retry_of_all(app: Any) -> None:
    """`self.retry()`, and ``autoretry_for``: each call has its own count and is sent alone."""

    @app.task(base=Batches, lazy=False, autoretry_for=(OSError,), retry_kwargs={"countdown": 3})
    def flaky(requests: Any) -> None:
        raise OSError("away")

    batch = run_batch(flaky, [make_request([1], retries=2), make_request([2])])
    assert batch.states == ["RETRY", "RETRY"]
    assert [outcome.retry.sig.options["retries"] for outcome in batch if outcome.retry] == [3, 1]
    assert [outcome.retry.when for outcome in batch if outcome.retry] == [3, 3]


def test_retries_that_are_exhausted(app: Any) -> None:
    """The call fails, with the reason of the retry or with Celery's own exception."""
    each = make(app, max_retries=2)
    batch = run_batch(each, [make_request(["retry"], retries=2), make_request(["retry"])])
    assert batch.states == ["FAILURE", "RETRY"]
    assert repr(batch.outcomes[0].exception) == "OSError('busy')"

    @app.task(base=Batches, lazy=False, max_retries=0)
    def plain(requests: Any) -> None:
        requests[0].retry()

    (outcome,) = run_batch(plain, [()])
    assert isinstance(outcome.exception, MaxRetriesExceededError)


def test_nothing_is_sent_or_stored(app: Any) -> None:
    """Links, chains, chords, errbacks and states need a broker or a backend, and there is none."""
    each = make(app, track_started=True)
    others = {
        "callbacks": [each.s("link")],
        "errbacks": [each.s("errback")],
        "chain": [each.s("next")],
        "chord": each.s("total"),
        "group": "a-group",
    }
    ways = ("done", "failed", "retry", "by the backend", "failed by the backend", "late")
    for way in ways:
        batch = run_batch(each, [make_request([way, 1], id="one", **others)])
        assert batch.outcomes[0].request.id == "one"
        assert batch.states[0] in {"SUCCESS", "FAILURE", "RETRY"}
    # The control: a broker and a backend are asked otherwise, and there is none.
    with pytest.raises(OperationalError):
        each.apply_async(("done", 1), ignore_result=True)
    assert each.apply(("done", 1)).state == "FAILURE"


def test_handlers_run(app: Any) -> None:
    """As in a worker; what a handler raises reaches the test."""
    said: list[Any] = []

    class Handled(Batches):
        abstract = True

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            said.append((retval, task_id))

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            raise RuntimeError("handler")

    @app.task(base=Handled, bind=True, lazy=False)
    def handled(self: Any, requests: Any) -> str:
        return end_each(self, requests)

    run_batch(handled, [make_request(["done", 5], id="a")])
    assert said == [(5, "a")]
    with pytest.raises(RuntimeError, match="handler"):
        run_batch(handled, [("failed", 1)])


def test_a_request_made_by_hand(app: Any) -> None:
    """One without a context, such as a test for 0.11 made, is not sent either."""
    request = SimpleRequest("one", "testing.each", ["retry"], {}, None, None)
    (outcome,) = run_batch(make(app), [request])
    assert (outcome.state, outcome.request) == ("RETRY", request)


def test_requests() -> None:
    """A request is what a body gets: a context, headers of its own, and it can be pickled."""
    request = make_request((1,), {"key": 2}, id="one", retries=3, tenant="acme", ignore_result=True)
    assert (request.id, request.args, request.kwargs) == ("one", [1], {"key": 2})
    assert (request.retries, request.ignore_result, request.redelivered) == (3, True, False)
    assert request.headers == {"tenant": "acme"}
    assert make_request(delivery_info={"redelivered": True}).redelivered
    assert make_request().id != make_request().id
    assert pickle.loads(pickle.dumps(request)).tenant == "acme"


def test_bad_input(app: Any) -> None:
    """It says what it takes."""

    @app.task(lazy=False)
    def ordinary() -> None: ...

    with pytest.raises(TypeError, match="another base than Batches"):
        run_batch(ordinary, [])
    each = make(app)
    calls: list[Any] = ["text", {"key": 1}, 5, None]
    for call in calls:
        with pytest.raises(TypeError, match=r"a call is a request of make_request\(\)"):
            run_batch(each, [call])


def test_a_lazy_task_and_no_calls(app: Any) -> None:
    """A lazy task is a batch task too. Without calls, the body does not run."""

    @app.task(base=Batches)
    def lazy(requests: Any) -> None:
        requests[0].mark_as_done(1)

    assert run_batch(lazy, []).outcomes == []
    assert run_batch(lazy, [()]).results == [1]
