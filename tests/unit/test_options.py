"""Options that make no sense are refused where the task is defined."""

from __future__ import annotations

import sys
from datetime import timedelta
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app import base as app_base
from celery.exceptions import ImproperlyConfigured

from celery_batches import Batches
from celery_batches.definition import REMOVED
from kit.clock import Clock
from kit.consumer import FakeConsumer


class Undecided:
    """Neither true nor false, as the columns and arrays of some packages."""

    def __bool__(self) -> bool:
        raise TypeError("no")

    def __repr__(self) -> str:  # The name of a test has it, and is one for all processes.
        return "Undecided()"


BAD_EVERY = [0, -1, True, False, 1.0, 2.5, "10", None, float("nan"), float("inf"), [10]]
BAD_INTERVAL = [
    *(0, -1, 0.0, -0.5, True, False, "10", None, float("nan"), float("inf"), float("-inf")),
    *(timedelta(0), timedelta(seconds=-1), 1j, [10]),
]
BAD_RATE = ["ten", "10/d", "/", "nan", "-1/s", -1, float("inf"), [10], b"10", Undecided()]
GOOD_INTERVAL = [
    *((1, 1.0), (0.001, 0.001), (1e9, 1e9), (Fraction(1, 2), 0.5)),
    *((timedelta(minutes=1), 60.0), (timedelta(milliseconds=5), 0.005)),
]
BAD = [
    *(("flush_every", value) for value in BAD_EVERY),
    *(("flush_interval", value) for value in BAD_INTERVAL),
    *(("rate_limit", value) for value in BAD_RATE),
    *(("bisect_on_failure", value) for value in (None, 1, "ValueError", [KeyError], int, (int,))),
    *(("bisect_on_failure", value) for value in (KeyboardInterrupt, KeyError("x"))),
    *(("unique_key", value) for value in (1, "not a name", "", [], ("a",))),
    *(("flush_idle", value) for value in BAD_INTERVAL if value is not None),
    *(("flush_idle", value) for value in (30, 31.5)),
    *(("flush_key", value) for value in (1, "not a name", "", [], ("a",))),
    *(("flush_keys", value) for value in BAD_EVERY),
    *(("flush_weight", value) for value in (1, "Bytes", "size", "", ["bytes"])),
    *(("flush_max_weight", value) for value in (0, -1, "10", True, float("nan"), float("inf"))),
    *(("unique_keep", value) for value in (None, "newest", 1, True)),
    *(("return_results", value) for value in (None, 0, 1, "yes", [])),
]


def test_the_message_of_a_rate_limit(app: Any) -> None:
    """It names the task, and says what to write instead."""
    with pytest.raises(ImproperlyConfigured) as error:

        @app.task(base=Batches, name="unit.ten", lazy=False, rate_limit="ten")
        def ten(requests: Any) -> None: ...

    assert str(error.value) == (
        "Task 'unit.ten': rate_limit is 'ten', but it must be a number of batches a second or a "
        'string such as "10/s", "100/m" or "1000/h". Set for example rate_limit="100/m".'
    )


def check_message(error: pytest.ExceptionInfo[Any], task: str, option: str, value: Any) -> None:
    text = str(error.value)
    assert task in text, "which task"
    assert option in text, "which option"
    assert repr(value) in text, "which value"
    assert "Set for example flush_" in text or f"Set for example {option}=" in text, "what to do"


def test_the_documented_defaults(app: Any) -> None:
    """Without options, a batch is 10 requests or 30 seconds, and arguments are not checked."""

    @app.task(base=Batches)
    def click(requests: Any) -> None: ...

    assert (click.flush_every, click.flush_interval_seconds) == (10, 30.0)
    assert click.typing is False


@pytest.mark.parametrize(("option", "value"), BAD, ids=repr)
def test_bad_in_the_decorator(app: Any, option: str, value: Any) -> None:
    """A decorator with nonsense raises, with task, option, value and fix in the message."""
    with pytest.raises(ImproperlyConfigured) as error:

        @app.task(base=Batches, name="unit.bad", lazy=False, **{option: value})
        def bad(requests: Any) -> None: ...

    check_message(error, "unit.bad", option, value)


@pytest.mark.parametrize(("option", "value"), BAD, ids=repr)
def test_bad_on_a_subclass(option: str, value: Any) -> None:
    """A subclass with nonsense raises when the class is made."""
    with pytest.raises(ImproperlyConfigured) as error:
        type("BadBatches", (Batches,), {option: value, "__module__": "unit"})
    check_message(error, "unit.BadBatches", option, value)


@pytest.mark.parametrize(("option", "value"), BAD, ids=repr)
def test_bad_in_task_annotations(app: Any, option: str, value: Any) -> None:
    """Configuration with nonsense raises when the task is created."""
    app.conf.task_annotations = {"unit.bad": {option: value}}
    with pytest.raises(ImproperlyConfigured) as error:

        @app.task(base=Batches, name="unit.bad", lazy=False)
        def bad(requests: Any) -> None: ...

    check_message(error, "unit.bad", option, value)


@pytest.mark.parametrize(
    ("option", "value", "other"),
    [("flush_weight", "bytes", "flush_max_weight"), ("flush_max_weight", 9, "flush_weight")],
)
def test_a_weight_needs_its_limit(app: Any, option: str, value: Any, other: str) -> None:
    """One without the other has no effect, so it is refused; a base class may have one of them."""
    with pytest.raises(ImproperlyConfigured) as error:

        @app.task(base=Batches, name="unit.bad", lazy=False, **{option: value})
        def bad(requests: Any) -> None: ...

    check_message(error, "unit.bad", option, value=value)
    assert f"Set for example {other}=" in str(error.value)
    base = type("Base", (Batches,), {option: value, "abstract": True, "__module__": "unit"})
    options = {"flush_weight": len, "flush_max_weight": 5, option: value}

    @app.task(base=base, name="unit.good", lazy=False, **options)
    def good(requests: Any) -> None: ...


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("flush_idle", value) for value in (None, 0.5, 29, timedelta(seconds=1))),
        *(("flush_key", value) for value in (None, "account", len)),
        ("flush_keys", 1),
    ],
    ids=repr,
)
def test_good_flush_options(app: Any, option: str, value: Any) -> None:
    @app.task(base=Batches, name="unit.good", lazy=False, **{option: value})
    def good(requests: Any) -> None: ...


@pytest.mark.parametrize("value", [1, 2, 10**6])
def test_good_flush_every(app: Any, value: int) -> None:
    """Any int from 1 up is a batch size, from wherever it is set."""

    @app.task(base=Batches, name="unit.decorated", flush_every=value)
    def decorated(requests: Any) -> None: ...

    class Sized(Batches):
        flush_every = value

    app.conf.task_annotations = {"unit.annotated": {"flush_every": value}}

    @app.task(base=Batches, name="unit.annotated")
    def annotated(requests: Any) -> None: ...

    @app.task(base=Sized, name="unit.derived")
    def derived(requests: Any) -> None: ...

    assert [t.flush_every for t in (decorated, annotated, derived)] == [value] * 3


@pytest.mark.parametrize(("value", "seconds"), GOOD_INTERVAL, ids=repr)
def test_good_flush_interval(app: Any, value: Any, seconds: float) -> None:
    """A number of seconds above 0 and a timedelta mean the same, from wherever they are set."""

    @app.task(base=Batches, name="unit.decorated", flush_interval=value)
    def decorated(requests: Any) -> None: ...

    class Timed(Batches):
        flush_interval = value

    app.conf.task_annotations = {"unit.annotated": {"flush_interval": value}}

    @app.task(base=Batches, name="unit.annotated")
    def annotated(requests: Any) -> None: ...

    @app.task(base=Timed, name="unit.derived")
    def derived(requests: Any) -> None: ...

    assert [t.flush_interval_seconds for t in (decorated, annotated, derived)] == [seconds] * 3


def test_a_class_based_task(app: Any) -> None:
    """A task that is a class with a run method is registered and bound as with Celery's Task."""

    class Click(Batches):
        name = "unit.class"
        flush_every = 3

        def run(self, requests: Any) -> int:
            return len(requests)

    task = app.register_task(Click())
    assert task.flush_every == 3
    assert task.apply().get() == 1


def test_a_body_is_needed() -> None:
    """A task without a body says so when it is run."""
    with pytest.raises(NotImplementedError, match="run"):
        Batches().run([])


def test_flush_outside_a_worker_is_refused(app: Any) -> None:
    """Flushing requests that no worker buffered says what to do instead; nothing is nothing."""

    @app.task(base=Batches, name="unit.click")
    def click(requests: Any) -> None: ...

    assert click.flush([]) is None
    with pytest.raises(ValueError, match="apply_async"):
        click.flush([object()])


@pytest.mark.parametrize("option", sorted(REMOVED))
def test_options_that_celery_has_removed(app: Any, option: str) -> None:
    """An option of old that Celery passes over is refused, with what to do instead."""
    with pytest.raises(ImproperlyConfigured, match=rf"'unit\.old': Celery has no {option}"):

        @app.task(base=Batches, name="unit.old", lazy=False, **{option: True})
        def old(requests: Any) -> None: ...


def test_a_call_that_celery_has_removed(app: Any) -> None:
    """What old tasks could do is refused by a word on what to do instead."""

    @app.task(base=Batches, name="unit.old")
    def old(requests: Any) -> None: ...

    with pytest.raises(AttributeError, match=r"'unit\.old'.*get_task_logger\(__name__\)"):
        old.get_logger()
    with pytest.raises(AttributeError, match=r"'unit\.old' has no attribute 'misspelt'$"):
        old.misspelt  # noqa: B018


def test_pydantic_is_refused(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery would validate the list of requests as the arguments of a call."""
    if not hasattr(app_base, "pydantic_wrapper"):
        pytest.skip("this Celery knows no pydantic")
    monkeypatch.setitem(sys.modules, "pydantic", SimpleNamespace(BaseModel=object))
    with pytest.raises(ImproperlyConfigured, match=r"'unit\.model'.*pydantic=True"):

        @app.task(base=Batches, name="unit.model", lazy=False, pydantic=True)
        def model(requests: Any) -> None: ...


def test_a_worker_checks_again_when_it_starts(app: Any) -> None:
    """An option of the class may have been set since the task was defined."""

    @app.task(base=Batches, name="unit.later", lazy=False)
    def later(requests: Any) -> None: ...

    type(later).unique_keep = "newest"
    with pytest.raises(ImproperlyConfigured, match=r"^Task 'unit\.later': unique_keep is 'newest'"):
        later.Strategy(later, app, FakeConsumer(app, Clock()))
