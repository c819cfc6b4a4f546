"""A process that is lost while the parts of a chord are stored and counted: the chord ends."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chord
from celery.exceptions import ChordError, WorkerLostError
from celery.worker.request import Request
from harness import Deployment, Worker, one_worker, options_for
from kombu.utils.uuid import uuid

SIZE = 6
TOTAL = sum(range(SIZE))

KINDS = ["methods", "backend", "task"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (broker, pool, deduplicate),
            id=f"{broker}-{pool}{'-deduplicating' if deduplicate else ''}",
            marks=[pytest.mark.redis, *([pytest.mark.rabbitmq] if broker == "rabbitmq" else [])],
        )
        for broker, pool, deduplicate in [
            ("redis", "prefork", False),
            ("redis", "prefork", True),
            ("redis", "threads", False),
            ("rabbitmq", "prefork", False),
            ("rabbitmq", "prefork", True),
        ]
    ],
)
def shared(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: Any
) -> Iterator[tuple[Deployment, Worker]]:
    broker, pool, deduplicate = request.param
    url = request.getfixturevalue(f"{broker}_url")
    options = options_for(url, redis_url, f"test-{uuid()}")
    options["worker_deduplicate_successful_tasks"] = deduplicate
    options["result_serializer"] = "pickle"
    options["accept_content"] = ["json", "pickle"]
    with one_worker("chords_app", tmp_path_factory.mktemp("chords"), options, pool) as shared:
        yield shared


@pytest.fixture
def way(request: pytest.FixtureRequest, kind: str) -> str:
    """How a process, or a thread, ends."""
    is_thread = "threads" in request.node.callspec.id
    if is_thread and kind == "task":
        pytest.skip("Celery does not notice it")
    if kind == "task" and not hasattr(Request, "_success_was_stored"):
        pytest.skip("this Celery does not look whether a lost task was done")
    return "exit" if is_thread else "kill"


def end_of(site: Deployment, task: Any, where: str, way: str) -> Any:
    """What comes of a chord of such parts, one of which ends its process."""
    name, ends = uuid(), len(site.reports.of("end"))
    parts = [task.s(name, number, where, way) for number in range(SIZE)]
    result = chord(parts)(site.module.total.s(name))
    try:
        return result.get(timeout=30)
    except (ChordError, WorkerLostError):  # Which of them depends on who asks first.
        return "failed"
    finally:
        # The chord may go on before the process ends.
        reports = site.reports.expect("end", ends + 1)
        assert [report["name"] for report in reports[ends:]] == [name]
        totals = [report for report in site.reports.of("total") if report["name"] == name]
        assert len(totals) <= 1


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chord_whose_process_is_lost_in_a_handler_is_done(
    site: Deployment, kind: str, when: str, way: str
) -> None:
    """All of its parts are counted before: as with ordinary tasks, each in its own process."""
    assert end_of(site, site.module.TASKS[kind, when], "handler", way) == TOTAL


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chord_whose_process_is_lost_between_two_of_its_parts_ends(
    site: Deployment, kind: str, when: str, way: str
) -> None:
    """Some of its parts are counted, and some are not: it fails, or these run again."""
    ends = {"early": "failed", "late": TOTAL}
    assert end_of(site, site.module.TASKS[kind, when], "storing", way) == ends[when]
