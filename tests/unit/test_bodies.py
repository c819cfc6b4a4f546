"""Bodies that would never run and misspelled options are refused at definition."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_batches import Batches


def generator(requests: Any) -> Any:
    yield


async def async_generator(requests: Any) -> Any:
    yield


def no_parameter() -> None: ...


def only_keywords(*, requests: Any) -> None: ...


async def async_without_parameter() -> None: ...


class GeneratorObject:
    #: Celery reads these of any body.
    __name__ = "generator_object"
    __annotations__: dict[str, Any] = {}

    def __call__(self, requests: Any) -> Any:
        yield


GENERATOR = (
    "Task 'unit.bad': its body is a generator function, of which a call runs nothing. Take yield "
    "out of the body, and call request.mark_as_done(result) to give a request its result."
)
NO_PARAMETER = (
    "Task 'unit.bad': its body takes no argument for the requests of a batch. Define it as {}."
)
REFUSED = {
    "a generator": (generator, GENERATOR),
    "an asynchronous generator": (async_generator, GENERATOR),
    "a callable object": (GeneratorObject(), GENERATOR),
    "an async function without a parameter": (
        async_without_parameter,
        NO_PARAMETER.format("async def async_without_parameter(requests)"),
    ),
    "no parameter": (no_parameter, NO_PARAMETER.format("def no_parameter(requests)")),
    "no positional parameter": (only_keywords, NO_PARAMETER.format("def only_keywords(requests)")),
}


@pytest.mark.parametrize(("body", "fix"), REFUSED.values(), ids=REFUSED)
def test_a_body_that_cannot_run_is_refused(app: Any, body: Any, fix: str) -> None:
    """The error names the task and says what to write instead. An ordinary task is not refused."""
    with pytest.raises(ImproperlyConfigured) as error:
        app.task(body, base=Batches, name="unit.bad", lazy=False)
    assert str(error.value).startswith("Task 'unit.bad': its body ")
    assert str(error.value).endswith(fix)
    app.task(body, name="unit.ordinary", lazy=False)


def test_a_bound_body_takes_the_requests_too(app: Any) -> None:
    """With ``bind=True``, the only parameter is the task."""
    with pytest.raises(ImproperlyConfigured, match=r"Define it as def alone\(self, requests\)"):

        @app.task(base=Batches, lazy=False, bind=True)
        def alone(self: Any) -> None: ...


@pytest.mark.parametrize("kind", ["run", "run of a base class"])
def test_a_body_of_a_class_is_checked(kind: str) -> None:
    """A class is refused when it is made."""

    def run(self: Any, requests: Any) -> Any:
        yield

    bases = (Batches,) if kind == "run" else (type("Mixin", (), {"run": run}), Batches)
    own = {"run": run} if kind == "run" else {}
    with pytest.raises(ImproperlyConfigured, match=r"Task 'unit\.Click': its body is a generator"):
        type("Click", bases, {**own, "__module__": "unit"})


def test_bodies_that_can_run(app: Any) -> None:
    """What cannot be told from the function is not refused: `*args`, defaults, wrappers."""

    def any_number(*args: Any) -> str:
        return "any number"

    def with_a_default(requests: Any, limit: int = 10) -> str:
        return "with a default"

    def buffers_0_1(requests: Any, other: Any) -> str:
        return "apply_buffer() passes more"

    @wraps(generator)
    def collected(requests: Any) -> list[Any]:
        return list(generator(requests))

    bodies = (any_number, with_a_default, buffers_0_1, collected)
    for number, body in enumerate(bodies):
        app.task(body, base=Batches, name=f"unit.good{number}", lazy=False)


NEAR = [
    ("flush_intervall", "flush_interval"),
    ("flush_evry", "flush_every"),
    ("flushevery", "flush_every"),
    ("flush_intervals", "flush_interval"),
    ("batch_size", "flush_every"),
    ("flush_timeout", "flush_interval"),
]


@pytest.mark.parametrize(("option", "meant"), NEAR)
def test_an_option_with_nearly_the_right_name_is_refused(app: Any, option: str, meant: str) -> None:
    """In a decorator and in the configuration. The error names the option that is meant."""
    message = (
        rf"^Task 'unit\.near': there is no option {option}\. Set {meant}=5 instead, if that is "
        rf"what you mean\.$"
    )
    with pytest.raises(ImproperlyConfigured, match=message):

        @app.task(base=Batches, name="unit.near", lazy=False, **{option: 5})
        def near(requests: Any) -> None: ...

    app.conf.task_annotations = {"unit.near": {option: 5}}
    with pytest.raises(ImproperlyConfigured, match=message):

        @app.task(base=Batches, name="unit.near", lazy=False)
        def annotated(requests: Any) -> None: ...


def test_names_in_a_class(app: Any) -> None:
    """A misspelled option is refused. What a class calls its own attributes is its business."""
    with pytest.raises(ImproperlyConfigured, match="Set flush_interval=3 instead"):
        type("Click", (Batches,), {"flush_intervall": 3})

    class Own(Batches):
        batch_size = 100
        flush_event = object()
        flush_everyyy = dict

        @property
        def flush_everyy(self) -> int:
            return 5

        def run(self, requests: Any) -> None: ...

    app.register_task(Own())


def test_other_options_are_left_to_celery(app: Any) -> None:
    """An unknown name becomes an attribute of the task, as Celery documents."""

    @app.task(base=Batches, lazy=False, queue_depth=7)
    def click(requests: Any) -> None: ...

    assert click.queue_depth == 7
