"""``async def`` bodies: they run to their end, and everything that wraps a body sees that end."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import pytest
from celery import current_task, signals
from celery.exceptions import Ignore, Reject, Retry

from celery_batches import Batches
from celery_batches.pool import async_body
from celery_batches.pool.running import running_batch
from celery_batches.testing import make_request, run_batch
from kit.log import messages
from kit.messages import IDS
from kit.tasks import make_task
from kit.tracing import World, exceptions

CALLS = [make_request([number], id=f"id-{number}") for number in range(3)]


async def double(request: Any) -> Any:
    await asyncio.sleep(0)
    return request.args[0] * 2


async def double_all(requests: Any) -> Any:
    return await asyncio.gather(*map(double, requests))


class Doubler:
    """A callable object. Celery reads the attributes of any body."""

    __name__ = "doubler"
    __annotations__: dict[str, Any] = {}

    async def __call__(self, requests: Any) -> Any:
        return await double_all(requests)


def decorated(body: Callable[..., Any]) -> Callable[..., Any]:
    """As decorators that know nothing of ``async`` wrap a function."""

    @wraps(body)
    def wrapper(*args: Any) -> Any:
        return body(*args)

    return wrapper


class Future:
    """An awaitable that is no coroutine."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests

    def __await__(self) -> Any:
        return double_all(self._requests).__await__()


def plain(requests: Any) -> Any:
    return double_all(requests)


def other(requests: Any) -> Any:
    return Future(requests)


BODIES = {
    "async def": double_all,
    "a callable object": Doubler(),
    "decorated": decorated(double_all),
    "a plain function that returns a coroutine": plain,
    "a plain function that returns another awaitable": other,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_async_body_runs_to_its_end(app: Any, body: Any) -> None:
    """What it returns is what a plain body returns: here, the results of the requests."""
    task = make_task(app, body, return_results=True)
    batch = run_batch(task, CALLS)
    assert (batch.states, batch.results) == (["SUCCESS"] * 3, [0, 2, 4])
    assert task.apply((21,)).get() == 42


def test_a_call_of_the_task_runs_the_body(app: Any) -> None:
    """As for any task: it returns what the body returns."""
    task = make_task(app, double_all)
    assert task(CALLS) == task.run(CALLS) == [0, 2, 4]


def test_a_bound_body(app: Any) -> None:
    """``self.request`` is the batch, in the coroutine and in the tasks that it starts."""
    seen: list[Any] = []

    async def note(self: Any) -> None:
        await asyncio.sleep(0)
        seen.append((self.request.id, current_task.name))

    async def body(self: Any, requests: Any) -> None:
        await note(self)
        await asyncio.create_task(note(self))

    World(app).define(body, bind=True)
    task = app.tasks["unit.click"]
    run_batch(task, CALLS)
    (batch,) = set(seen)
    assert batch[0] not in (None, *IDS)
    assert batch[1] == task.name
    assert task.request.id is None


@pytest.mark.parametrize("kind", ["method", "static", "partial"])
def test_the_body_of_a_class(app: Any, kind: str) -> None:
    """Also with ``autoretry_for``, for which Celery wraps bodies of classes earlier than others."""

    async def method(self: Any, requests: Any) -> Any:
        assert isinstance(self, Batches)
        raise OSError

    async def static(requests: Any, other: Any = None) -> Any:
        raise OSError

    runs = {
        "method": method,
        "static": staticmethod(static),
        "partial": staticmethod(partial(static, other=1)),
    }
    click = type("Click", (Batches,), {"run": runs[kind], "name": "unit.click"})
    task = app.register_task(click(), autoretry_for=(OSError,))
    task.autoretry_for = (OSError,)
    assert run_batch(task, CALLS).states == ["RETRY"] * 3


def test_a_body_that_extends_another(app: Any) -> None:
    """``await super().run()`` is that of the class, and ``await task.run()`` works in a loop."""

    class Base(Batches):
        name = "unit.base"

        async def run(self, requests: Any) -> Any:
            return await double_all(requests)

    class Further(Base):
        name = "unit.further"
        return_results = True

        async def run(self, requests: Any) -> Any:
            return [-number for number in await super().run(requests)]

    base, further = app.register_task(Base()), app.register_task(Further())
    assert run_batch(further, CALLS).results == [0, -2, -4]

    async def in_a_test() -> Any:
        return await base.run(CALLS), await further(CALLS)

    assert asyncio.run(in_a_test()) == ([0, 2, 4], [0, -2, -4])


class WithContext(Batches):
    """As Flask's documentation has it: the body runs inside of the context of an application."""

    abstract = True
    is_inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).is_inside = True
        try:
            return self.run(*args, **kwargs)
        finally:
            type(self).is_inside = False


class AsyncCall(Batches):
    abstract = True
    is_inside = False

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).is_inside = True
        try:
            return await self.run(*args, **kwargs)
        finally:
            type(self).is_inside = False


@pytest.mark.parametrize("base", [WithContext, AsyncCall])
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (OSError,)}], ids=["", "autoretry"])
@pytest.mark.parametrize("is_decorated", [False, True])
def test_an_overridden_call_is_around_the_body(
    app: Any, base: Any, options: Any, is_decorated: bool
) -> None:
    """Until the end of the coroutine."""

    async def body(self: Any, requests: Any) -> Any:
        await asyncio.sleep(0)
        assert self.is_inside
        return await double_all(requests)

    run = decorated(body) if is_decorated else body
    task = make_task(app, run, base=base, bind=True, return_results=True, **options)
    assert run_batch(task, CALLS).results == [0, 2, 4]
    assert not task.is_inside


@pytest.mark.parametrize("body", ["async def", "decorated", "plain", "async call"])
@pytest.mark.parametrize("bisect", [False, True])
def test_autoretry_sees_the_exception_of_an_async_body(app: Any, body: str, bisect: bool) -> None:
    """As it does that of a plain one, which is the control: each request by its own backoff."""

    async def fail(requests: Any) -> None:
        await asyncio.sleep(0)
        if any(request.args[0] == 1 for request in requests):
            raise OSError("down")
        for request in requests:
            request.mark_as_done()

    def control(requests: Any) -> None:
        asyncio.run(fail(requests))

    bodies = {"decorated": decorated(fail), "plain": lambda requests: fail(requests)}
    options = {
        "autoretry_for": (OSError,),
        "retry_backoff": 2,
        "retry_jitter": False,
        "bisect_on_failure": bisect,
    }
    calls = [make_request([n], id=f"id-{n}", retries=n) for n in range(3)]
    base = AsyncCall if body == "async call" else Batches
    task = make_task(app, bodies.get(body, fail), base=base, **options)
    ordinary = make_task(app, control, name="unit.control", **options)
    batch, expected = run_batch(task, calls), run_batch(ordinary, calls)
    assert batch.states == expected.states
    assert ("SUCCESS" in batch.states) == bisect
    assert [outcome.retry.when for outcome in batch if outcome.retry] == [
        outcome.retry.when for outcome in expected if outcome.retry
    ]
    assert type(batch.exception) is type(expected.exception)


@pytest.mark.parametrize("body", ["async def", "plain"])
def test_autoretry_leaves_other_exceptions_alone(app: Any, body: str) -> None:
    """Those that are not chosen, and those that are excluded."""
    raised: list[Exception] = [KeyError(), TimeoutError()]

    async def fail(requests: Any) -> None:
        raise raised.pop()

    options = {"autoretry_for": (OSError,), "dont_autoretry_for": (TimeoutError,)}
    task = make_task(app, fail if body == "async def" else lambda r: fail(r), **options)
    assert run_batch(task, CALLS).states == ["FAILURE"] * 3
    assert run_batch(task, CALLS).states == ["FAILURE"] * 3


def test_poison_is_found_in_an_async_body(app: Any) -> None:
    """``bisect_on_failure`` runs the coroutine again in halves."""

    async def body(requests: Any) -> Any:
        results = await double_all(requests)
        return [10 // number for number in results]

    batch = run_batch(make_task(app, body, return_results=True, bisect_on_failure=True), CALLS)
    assert batch.states == ["FAILURE", "SUCCESS", "SUCCESS"]
    assert batch.results == [None, 5, 2]


def test_exceptions_that_are_gathered(app: Any) -> None:
    """``return_exceptions=True`` and ``return_results`` fit each other."""

    async def one(request: Any) -> Any:
        if request.args[0] == 1:
            raise KeyError("one")
        return await double(request)

    async def body(requests: Any) -> Any:
        return await asyncio.gather(*map(one, requests), return_exceptions=True)

    batch = run_batch(make_task(app, body, return_results=True), CALLS)
    assert (batch.states, batch.results) == (["SUCCESS", "FAILURE", "SUCCESS"], [0, None, 4])


def test_unique_keys_of_an_async_body(app: Any) -> None:
    """It gets one of each key."""
    calls = [make_request([number]) for number in (1, 2, 1)]
    options = {"unique_key": lambda request: request.args[0], "return_results": True}
    seen: list[int] = []

    async def body(requests: Any) -> Any:
        seen.extend(request.args[0] for request in requests)
        return await double_all(requests)

    assert run_batch(make_task(app, body, **options), calls).results == [2, 4, 2]
    assert seen == [2, 1]


def test_marks_in_a_coroutine_and_in_a_thread(app: Any) -> None:
    """The methods of a request work in the coroutine, in its tasks, and in `to_thread`."""
    world = World(app)

    async def mark(request: Any) -> None:
        request.mark_as_done("task")

    async def body(requests: Any) -> None:
        await asyncio.create_task(mark(requests[0]))
        await asyncio.to_thread(requests[1].mark_as_failure, KeyError("thread"))
        app.backend.mark_as_done(requests[2].id, "idiom")

    world.run(body)
    assert world.states == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert app.AsyncResult(IDS[0]).result == "task"


@pytest.mark.parametrize(
    ("raised", "state"),
    [(KeyError("x"), "FAILURE"), (Ignore(), "IGNORED"), (Reject(), "REJECTED"), (Retry(), "RETRY")],
    ids=["error", "ignore", "reject", "retry"],
)
def test_what_an_async_body_raises(app: Any, raised: Exception, state: str) -> None:
    """It means what it means in a plain body."""

    async def body(requests: Any) -> None:
        requests[0].mark_as_done()
        await asyncio.sleep(0)
        raise raised

    batch = run_batch(make_task(app, body), CALLS)
    assert batch.states == ["SUCCESS", state, state]
    assert batch.exception is raised


def test_self_retry_in_a_coroutine(app: Any) -> None:
    """It ends the body."""

    async def body(self: Any, requests: Any) -> None:
        await asyncio.sleep(0)
        self.retry(countdown=5)

    batch = run_batch(make_task(app, body, bind=True), CALLS)
    assert batch.states == ["RETRY"] * 3
    assert {outcome.retry.when for outcome in batch if outcome.retry} == {5}


def test_the_traceback_of_a_coroutine(app: Any) -> None:
    """It ends where the body has raised, as the log and the result show it."""

    async def deep() -> None:
        raise KeyError("deep")

    async def body(requests: Any) -> None:
        await deep()

    world = World(app)
    world.run(body)
    assert "in deep" in app.AsyncResult(IDS[0]).traceback.splitlines()[-3]


@pytest.mark.parametrize("what", ["itself", "its child"])
def test_a_body_that_was_cancelled_fails(app: Any, what: str) -> None:
    """Not by a limit: an exception that no result backend can store does not leave the body."""

    async def body(requests: Any) -> None:
        requests[0].mark_as_done()
        child = asyncio.current_task() if what == "itself" else asyncio.create_task(double(None))
        assert child is not None
        child.cancel("by itself")
        await (asyncio.sleep(60) if what == "itself" else child)

    world = World(app)
    reports = world.run(body)
    assert world.states == ["SUCCESS", "FAILURE", "FAILURE"]
    error = exceptions(reports)[1]
    assert isinstance(error, RuntimeError)
    # Python 3.10 forgets why.
    why = "'by itself'" if sys.version_info >= (3, 11) else ""
    assert f"Task 'unit.click': its body was cancelled: CancelledError({why})" in str(error)


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="nothing")


def test_context_variables(app: Any) -> None:
    """The body sees those of its caller. What it sets, the next batch does not see."""
    seen: list[str] = []

    def prerun(**_: Any) -> None:
        if VARIABLE.get() == "caller":
            VARIABLE.set("prerun")

    async def body(requests: Any) -> None:
        seen.append(VARIABLE.get())
        seen.append(await asyncio.to_thread(VARIABLE.get))
        VARIABLE.set("body")

    task = make_task(app, body)
    token = VARIABLE.set("caller")
    signals.task_prerun.connect(prerun)
    try:
        run_batch(task, CALLS)
        assert seen == ["prerun"] * 2
        assert VARIABLE.get() == "prerun"
        run_batch(task, CALLS)
        assert seen == ["prerun"] * 4
    finally:
        signals.task_prerun.disconnect(prerun)
        VARIABLE.reset(token)


@pytest.mark.parametrize("how", ["apply", "always eager", "run_batch"])
def test_eager_in_a_running_loop_is_refused(app: Any, how: str) -> None:
    """With what to do instead, which works. Nothing has run before, and no signal was sent."""
    app.conf.task_always_eager = how == "always eager"
    sent: list[Any] = []
    task = make_task(app, double_all, return_results=True)
    call: Callable[[], Any] = {
        "apply": lambda: task.apply((2,)),
        "always eager": lambda: task.delay(2),
        "run_batch": lambda: run_batch(task, [(2,)]),
    }[how]

    def prerun(**_: Any) -> None:
        sent.append(None)

    async def main() -> Any:
        with pytest.raises(RuntimeError) as error:
            call()
        assert "Task 'unit.click': its body is async, and an event loop is running" in str(error)
        assert "await asyncio.to_thread(double_all.apply, args)" in str(error.value)
        assert sent == []
        return await asyncio.to_thread(call)

    signals.task_prerun.connect(prerun)
    try:
        done = asyncio.run(main())
    finally:
        signals.task_prerun.disconnect(prerun)
    assert (done.results if how == "run_batch" else [done.get()]) == [4]
    assert sent == [None]


def test_an_awaitable_that_is_returned_in_a_running_loop(app: Any) -> None:
    """What is known only when the body has returned fails its batch, with the same error."""
    task = make_task(app, lambda requests: double_all(requests))

    async def main() -> Any:
        return run_batch(task, CALLS)

    batch = asyncio.run(main())
    assert batch.states == ["FAILURE"] * 3
    assert "an event loop is running in this thread" in str(batch.exception)


def test_an_async_body_with_greenlets_fails(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the worker not have refused to start: what a plain body returns it cannot know."""
    monkeypatch.setattr(async_body, "detect_environment", lambda: "gevent")
    batch = run_batch(make_task(app, lambda requests: double_all(requests)), CALLS)
    assert batch.states == ["FAILURE"] * 3
    assert "Task 'unit.click': its body is async, and the greenlets of gevent" in str(
        batch.exception
    )
    assert "Use another pool, such as threads" in str(batch.exception)


async def turns(count: int) -> None:
    """Let the others go on, so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_coroutines_act_for_different_requests_at_once(app: Any) -> None:
    """``request.context()`` is for the asyncio task that enters it, and for what that starts."""
    seen: list[tuple[str, str, str]] = []

    async def look(request: Any) -> None:
        await turns(2)
        seen.append((request.id, current_task.request.id, "child"))

    async def one(task: Any, request: Any, number: int) -> None:
        with request.context() as context:
            # They neither enter nor leave in any order of a stack.
            await turns(3 - number)
            assert task.request is context
            assert running_batch(task) is None  # What acts on all requests acts on this one.
            seen.append((request.id, current_task.request.id, "in it"))
            await asyncio.create_task(look(request))
            await turns(number)
            assert task.request.root_id == request.id
        assert task.request.id not in IDS

    async def body(self: Any, requests: Any) -> None:
        batch = self.request.id
        await asyncio.gather(*(one(self, *each[::-1]) for each in enumerate(requests)))
        assert self.request.id == batch
        assert running_batch(self) is not None

    batch = run_batch(make_task(app, body, bind=True), CALLS)
    assert batch.exception is None
    assert len(seen) == 6
    assert all(id == current for id, current, _ in seen)


def test_what_coroutines_call_for_a_request(app: Any) -> None:
    """``self.retry()`` retries that request alone, and tasks that are sent have it as parent."""
    world = World(app)
    app.conf.task_always_eager = False
    states: list[Any] = []

    async def one(task: Any, request: Any) -> None:
        with request.context():
            await turns(2)
            if request.id == IDS[1]:
                task.retry(exc=OSError(), countdown=7)
            world.following.delay(1)
            assert task.request.id == request.id
            # Of this request only, as of an ordinary task.
            task.update_state(state="SEEN")
            states.append(sorted(app.AsyncResult(id).state for id in IDS))
            await turns(2)
            request.mark_as_done(request.id)

    async def body(self: Any, requests: Any) -> None:
        await asyncio.gather(*(one(self, request) for request in requests))

    world.define(body, bind=True)
    world.run(None)
    assert world.states == ["SUCCESS", "RETRY", "SUCCESS"]
    following = [sent for name, sent in world.sent if name == "unit.following"]
    assert [sent["parent_id"] for sent in following] == [IDS[0], IDS[2]]
    assert states == [["PENDING", "PENDING", "SEEN"], ["PENDING", "SEEN", "SEEN"]]


def test_a_context_in_a_thread_of_a_coroutine(app: Any) -> None:
    """A thread has no current request, until it enters that of one. Celery's stack is its own."""
    seen: list[Any] = []

    def work(task: Any, request: Any) -> None:
        seen.append(task.request.id)
        with request.context():
            seen.append(task.request.id)

    async def body(self: Any, requests: Any) -> None:
        with requests[0].context():
            await asyncio.to_thread(work, self, requests[1])
            seen.append(self.request.id)

    run_batch(make_task(app, body, bind=True), CALLS)
    assert seen == [None, "id-1", "id-0"]


def test_an_eager_call_of_the_same_task_in_a_context(app: Any) -> None:
    """Its request is current while it runs, and then that of the coroutine again."""
    seen: list[Any] = []

    def plain_or_not(self: Any, requests: Any) -> Any:
        if requests[0].args == ["inner"]:
            seen.append((self.request.id, self.request.is_eager))
            return None
        return outer(self, requests)

    async def outer(self: Any, requests: Any) -> None:
        with requests[0].context():
            self.apply(["inner"], task_id="inner")
            seen.append(self.request.id)

    run_batch(make_task(app, plain_or_not, bind=True), CALLS)
    assert seen == [("inner", True), "id-0"]


def test_batches_run_on_one_loop(app: Any) -> None:
    """It is kept: what waits for something at the end of a batch goes on in the next one."""
    tasks: list[asyncio.Task[Any]] = []
    go: list[asyncio.Event] = []

    async def wait() -> str:
        await go[0].wait()
        return "went on"

    async def body(requests: Any) -> Any:
        if not tasks:
            go.append(asyncio.Event())
            tasks.append(asyncio.create_task(wait()))
            return None
        go[0].set()
        return await tasks[0]

    task = make_task(app, body)
    assert run_batch(task, CALLS).returned is None
    assert run_batch(task, CALLS).returned == "went on"


def test_tasks_that_a_body_leaves_are_warned_of_once(app: Any, caplog: Any) -> None:
    """With their number, one of them, and what to do. Those of an earlier batch do not count."""
    left: list[asyncio.Task[Any]] = []

    async def forgotten() -> None:
        await asyncio.sleep(600)

    async def body(requests: Any) -> None:
        left.extend(asyncio.create_task(forgotten()) for _ in range(2))
        await asyncio.sleep(0)

    task = make_task(app, body)
    other = make_task(app, double_all, name="unit.other")
    run_batch(other, CALLS)
    assert messages(caplog, logging.WARNING) == []
    run_batch(task, CALLS)
    run_batch(task, CALLS)
    run_batch(other, CALLS)
    (line,) = messages(caplog, logging.WARNING)
    assert "Task unit.click: the body has ended before 2 asyncio tasks" in line
    assert "forgotten" in line
    assert "Await them in the body" in line
    assert not any(task.done() for task in left)
    for each in left:
        each.cancel()
    run_batch(other, CALLS)
    assert all(task.cancelled() for task in left)


@pytest.mark.parametrize("who", ["the body", "its child"])
def test_an_exit_leaves_a_loop_that_works(app: Any, who: str, caplog: Any) -> None:
    """The body is cancelled, its ``finally`` blocks run, and the next batch runs."""
    seen: list[str] = []

    async def leave() -> None:
        raise SystemExit(3)

    async def body(requests: Any) -> None:
        try:
            if who == "the body":
                await leave()
            child = asyncio.create_task(leave())
            await asyncio.sleep(600)
            await child
        finally:
            await asyncio.sleep(0)
            seen.append("finally")

    task = make_task(app, body)
    with pytest.raises(SystemExit):
        run_batch(task, CALLS)
    assert seen == ["finally"]
    gc.collect()
    assert ("asyncio" in {record.name for record in caplog.records}) == (who == "its child")
    other = make_task(app, double_all, name="unit.other", return_results=True)
    assert run_batch(other, CALLS).results == [0, 2, 4]


def test_each_thread_has_a_loop(app: Any) -> None:
    """Batches of one task may run at once."""
    loops: dict[int, set[Any]] = {1: set(), 2: set()}
    both = threading.Barrier(2)

    async def body(requests: Any) -> None:
        await asyncio.to_thread(both.wait, 30)
        loops[requests[0].args[0]].add(asyncio.get_running_loop())

    task = make_task(app, body)

    def run(number: int) -> None:
        for _ in range(2):
            run_batch(task, [(number,)])

    threads = [threading.Thread(target=run, args=(number,)) for number in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(of_thread) for of_thread in loops.values()] == [1, 1]
    assert loops[1] != loops[2]
